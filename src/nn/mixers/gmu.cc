// Gated memory unit: re-reads the memory of an earlier layer through a gate of its own, without any token
// mixing. Ren et al. 2025, "Decoder-Hybrid-Decoder Architecture", arXiv:2507.06607 (SambaY).
//   y = W_2 (m * silu(W_1 x))
//   y = W_2 RMSNorm(m * silu(W_1 x))     with memory_norm (nGMU), for memories of a matrix state
// m [B, T, M] is the memory of this call's tokens: a mamba layer's read-out before its own gate, and the
// like.
#include "base/error.h"
#include "nn/mixer.h"
#include "ops/activation/activation.h"
#include "ops/norm/norm.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Gmu final : public SequenceMixer {
 public:
  struct Options {
    int64_t memory = 0;
    bool memory_norm = false;
    void fields(Fields& f) {
      f("memory", memory, "M, width of the imported memory; 0 means twice the model width", at_least(0));
      f("memory_norm", memory_norm, "RMS norm of the gated memory, for memories of a matrix state");
    }
  };

  Gmu(const Options& options, const Site& site)
      : memory_(options.memory > 0 ? options.memory : 2 * site.width),
        gate_(linear("gate", site.width, memory_)),
        out_(linear("out", memory_, site.width, {.scale = site.residual_init()})) {
    if (options.memory_norm) norm_ = norm("norm", Norm::Kind::rms, memory_, site.norm_eps);
  }

  at::Tensor run(const at::Tensor& x, State&, const Context& context) override {
    const auto& m = context.import("memory").at("memory");
    require_shape("gmu", "the imported memory", m, {x.size(0), x.size(1), memory_});
    const auto gate = gate_(x);
    if (norm_.kind() == Norm::Kind::none) return out_(ops::silu_mul(gate, m));
    return out_(ops::gated_rms_norm(m, gate, norm_.weight(), norm_.eps(), /*norm_before_gate=*/false));
  }

  State initial_state(int64_t, const at::TensorOptions&) const override { return {}; }
  Summary summary(const at::Tensor&, const State&, const Context&) override { return {}; }
  std::vector<std::string> import_ports() const override { return {"memory"}; }
  double op_flops(int64_t) const override { return 0; }
  std::vector<std::string> ops() const override {
    return norm_.kind() == Norm::Kind::none ? std::vector<std::string>{} : std::vector<std::string>{"norm"};
  }

 private:
  int64_t memory_;
  Linear gate_, out_;
  Norm norm_;
};
const Register<Gmu> register_gmu{"gmu", "gated memory unit over an earlier layer's read-out"};

}  // namespace
}  // namespace weft
