// HGRN: a gated vector state that forgets more slowly in higher layers. Qin et al. 2023, arXiv:2311.04823, with real
// instead of complex decays.
//   f = bound + (1 - bound) sigmoid(W_f x)                      fp32
//   h_t = f_t * h_{t-1} + (1 - f_t) * silu(W_i x)
//   y_t = W_o (RMSNorm(h_t) * silu(W_g x))
// `bound` is fixed: layer / num_layers, see forget_gate.h for how that differs from the paper's.
//
// E inner width. State: h [B, E] fp32.
#include "nn/mixer.h"
#include "nn/mixers/forget_gate.h"
#include "nn/mixers/step_size.h"
#include "ops/norm/norm.h"
#include "ops/scan/scan.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Hgrn final : public SequenceMixer {
 public:
  struct Options {
    int64_t inner = 0;
    double lower_bound = -1;
    void fields(Fields& f) {
      f("inner", inner, "E, channels of the state; 0 means the model width", at_least(0));
      f("lower_bound", lower_bound, "least forget gate, in [0, 1); -1 means layer / layers of the model",
        at_least(-1), below(1));
    }
  };

  Hgrn(const Options& options, const Site& site)
      : inner_(options.inner > 0 ? options.inner : site.width),
        bound_(forget_bound(options.lower_bound, site)),
        forget_(linear("forget", site.width, inner_)),
        in_(linear("in", site.width, inner_)),
        gate_(linear("gate", site.width, inner_)),
        norm_(norm("norm", Norm::Kind::rms, inner_, site.norm_eps)),
        out_(linear("out", inner_, site.width, {.scale = site.residual_init()})) {}

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto in = inputs(x);
    const auto result = ops::scan(in.log_keep.exp(), in.write, state.at("h"), context.starts);
    state.set("h", result.state);
    return finish(result.h, x);
  }

  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    if (context.starts.defined()) return run(x, state, context);
    const auto in = inputs(x);
    return finish(ops::scan_step(in.log_keep.exp(), in.write, state.writable("h")), x);
  }

  Summary summary(const at::Tensor& x, const State&, const Context& context) override {
    const auto in = inputs(x);
    auto factor = in.log_keep.sum(1).exp();  // [B, E]
    if (context.starts.defined())
      factor = at::where(context.starts.any(1).unsqueeze(1), at::zeros_like(factor), factor);
    Summary summary;
    summary.maps["h"] = {factor, ops::scan(in.log_keep.exp(), in.write, {}, context.starts).state};
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("h", at::zeros({batch, inner_}, state_options(options)));
    return state;
  }

  double op_flops(int64_t) const override { return static_cast<double>(2 * inner_); }
  std::vector<std::string> ops() const override { return {"scan", "norm"}; }

 private:
  // log f, and what is written: (1 - f) silu(W_i x); both fp32, as the state keeps sums of many small terms.
  ForgetGate inputs(const at::Tensor& x) const {
    const auto wide = accumulate_type(x);
    auto gate = forget_gate(forget_(x).to(wide), bound_);
    gate.write = gate.write * at::silu(in_(x).to(wide));
    return gate;
  }

  at::Tensor finish(const at::Tensor& h, const at::Tensor& x) const {
    return out_(ops::gated_rms_norm(h.to(x.scalar_type()), gate_(x), norm_.weight(), norm_.eps(),
                                    /*norm_before_gate=*/true));
  }

  int64_t inner_;
  double bound_;
  Linear forget_, in_, gate_;
  Norm norm_;
  Linear out_;
};
const Register<Hgrn> register_hgrn{
    "hgrn",
    "HGRN: gated vector state, one number a channel; use it where the state must be tiny and exact recall is "
    "not needed"};

}  // namespace
}  // namespace weft
