// HGRN-2: a matrix state whose keys are what the forget gate lets go. Qin et al. 2024, arXiv:2404.07904.
//   q = silu(W_q x);  v = W_i x
//   f = bound + (1 - bound) sigmoid(W_f x);  k = 1 - f          fp32
//   S_t = diag(f_t) S_{t-1} + k_t v_t'
//   y_t = W_o RMSNorm(S_t' q_t / sqrt(K))                       one norm over all heads, no output gate
// `bound` is fixed: layer / num_layers, see forget_gate.h for how that differs from the paper's.
//
// H = width / K heads of width K for keys and values. State: S [B, H, K, K] fp32.
#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/forget_gate.h"
#include "nn/mixers/linear_state.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Hgrn2 final : public SequenceMixer {
 public:
  struct Options {
    int64_t head_dim = 128;
    double lower_bound = -1;
    void fields(Fields& f) {
      f("head_dim", head_dim, "K, width of a head; it divides the model width", at_least(1), at_most(256));
      f("lower_bound", lower_bound, "least forget gate, in [0, 1); -1 means layer / layers of the model",
        at_least(-1), below(1));
    }
  };

  Hgrn2(const Options& options, const Site& site)
      : head_dim_(options.head_dim),
        heads_(site.width / options.head_dim),
        bound_(forget_bound(options.lower_bound, site)),
        q_(linear("q", site.width, site.width)),
        forget_(linear("forget", site.width, site.width)),
        in_(linear("in", site.width, site.width)),
        norm_(norm("norm", Norm::Kind::rms, site.width, site.norm_eps)),
        out_(linear("out", site.width, site.width, {.scale = site.residual_init()})) {
    require(site.width % head_dim_ == 0, "{}: head_dim {} does not divide width {}", site.where, head_dim_,
            site.width);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    return out_(norm_(attend(problem(x, context), state).flatten(2)));
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    return out_(norm_(attend_step(problem(x, context), state).flatten(2)));
  }
  Summary summary(const at::Tensor& x, const State&, const Context& context) override {
    Summary summary;
    summary.maps["S"] = attend_summary(problem(x, context));
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("S", matrix_state(batch, heads_, head_dim_, head_dim_, options));
    return state;
  }

  double op_flops(int64_t) const override { return static_cast<double>(4 * heads_ * head_dim_ * head_dim_); }
  std::vector<std::string> ops() const override { return {"linear_attention", "norm"}; }

 private:
  ops::LinearAttention problem(const at::Tensor& x, const Context& context) const {
    const auto split = [&](const at::Tensor& y) { return y.unflatten(-1, {heads_, head_dim_}); };
    const auto gate = forget_gate(forget_(x).to(accumulate_type(x)), bound_);
    return {.q = split(at::silu(q_(x))),
            .k = split(gate.write.to(x.scalar_type())),
            .v = split(in_(x)),
            .log_decay = split(gate.log_keep),
            .starts = context.starts};
  }

  int64_t head_dim_, heads_;
  double bound_;
  Linear q_, forget_, in_;
  Norm norm_;
  Linear out_;
};
const Register<Hgrn2> register_hgrn2{
    "hgrn2",
    "HGRN-2: matrix state that writes exactly what it forgets; use it as the linear part of a hybrid with "
    "three to six linear layers for one of attention"};

}  // namespace
}  // namespace weft
