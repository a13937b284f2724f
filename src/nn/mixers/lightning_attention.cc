// Lightning attention: linear attention with a fixed decay for each head, set by the head and the depth of the layer.
// Qin et al. 2024, "Lightning Attention-2", arXiv:2401.04658; as in MiniMax-01, arXiv:2501.08313.
//   q, k, v = f(W x), of each head q, then k, then v                  f: silu unless told otherwise
//   S_t = e^{-s} S_{t-1} + k_t v_t',  s = 2^{-8 (h + 1) / H} (1 - l / (n - 1 + 1e-5) + 1e-5)
//   y_t = W_o (sigmoid(W_g x) * RMSNorm(S_t' q_t))                    norm over all heads at once
//
// H heads h = 0, 1, ... of width K in layer l of n. State: S [B, H, K, K] fp32.
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/heads.h"
#include "nn/mixers/linear_state.h"
#include "ops/activation/named.h"
#include "ops/shape.h"

namespace weft {
namespace {

class LightningAttention final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, head_dim = 0, depth = -1, depths = 0;
    std::string activation = "silu";
    double out_norm_eps = 1e-6;
    void fields(Fields& f) {
      f("heads", heads, "H, heads", at_least(1));
      f("head_dim", head_dim, "K, width of a head; 0 means width / heads", at_least(0), at_most(256));
      f("depth", depth, "l in the decay, from 0; -1 means the number of this layer", at_least(-1));
      f("depths", depths, "n in the decay; 0 means the number of layers", at_least(0));
      f("activation", activation, "of q, k and v", one_of(ops::activation_names()));
      f("out_norm_eps", out_norm_eps, "of the norm of the read-out", above(0));
    }
  };

  LightningAttention(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        activation_(ops::activation_of(o_.activation)),
        qkv_(linear("qkv", site.width, 3 * o_.heads * o_.head_dim)),
        gate_(linear("gate", site.width, o_.heads * o_.head_dim)),
        norm_(norm("norm", Norm::Kind::rms, o_.heads * o_.head_dim, o_.out_norm_eps)),
        out_(linear("out", o_.heads * o_.head_dim, site.width, {.scale = site.residual_init()})) {
    const auto slopes =
        at::pow(2.0, at::arange(1, o_.heads + 1, at::kDouble) * (-8.0 / static_cast<double>(o_.heads)));
    log_decay_ =
        -slopes * (1 - static_cast<double>(o_.depth) / (static_cast<double>(o_.depths) - 1 + 1e-5) + 1e-5);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    return finish(attend(problem(x, context), state), x);
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    return finish(attend_step(problem(x, context), state), x);
  }
  Summary summary(const at::Tensor& x, const State&, const Context& context) override {
    Summary summary;
    summary.maps["S"] = attend_summary(problem(x, context));
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("S", matrix_state(batch, o_.heads, o_.head_dim, o_.head_dim, options));
    return state;
  }
  double op_flops(int64_t) const override {
    return static_cast<double>(4 * o_.heads * o_.head_dim * o_.head_dim);
  }
  std::vector<std::string> ops() const override { return {"linear_attention", "norm"}; }

 private:
  static Options resolved(Options o, const Site& site) {
    o.head_dim = head_dim_of(o.head_dim, o.heads, site);
    if (o.depth < 0) o.depth = site.layer;
    if (o.depths == 0) o.depths = site.num_layers;
    require(o.depth < o.depths, "{}: depth {} of depths {}: the first is 0", site.where, o.depth, o.depths);
    return o;
  }

  ops::LinearAttention problem(const at::Tensor& x, const Context& context) const {
    const auto parts =
        ops::activate(activation_, qkv_(x)).unflatten(-1, {o_.heads, 3, o_.head_dim}).unbind(-2);
    return {.q = parts[0],
            .k = parts[1],
            .v = parts[2],
            .log_decay = log_decay_.to(x.options().dtype(accumulate_type(x))),
            .scale = 1,
            .starts = context.starts};
  }

  at::Tensor finish(const at::Tensor& y, const at::Tensor& x) const {
    return out_(at::sigmoid(gate_(x)) * norm_(y.flatten(2)));
  }

  Options o_;
  ops::Activation activation_;
  Linear qkv_, gate_;
  Norm norm_;
  Linear out_;
  at::Tensor log_decay_;  // [H] fp64
};
const Register<LightningAttention> register_lightning_attention{
    "lightning_attention",
    "linear attention with a fixed decay for each head and depth; use it for the linear layers of "
    "MiniMax-like hybrids"};

}  // namespace
}  // namespace weft
