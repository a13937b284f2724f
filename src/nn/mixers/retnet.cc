// RetNet (multi-scale retention): a matrix state that every head forgets at a fixed pace of its own. Sun et al.
// 2023, arXiv:2307.08621.
//   q, k = rope(W_q x), rope(W_k x);  v = W_v x
//   S_t = (1 - 2^{-5-h}) S_{t-1} + k_t v_t'      head h = 0, 1, ...; the decays are not trained
//   y_t = W_o (RMSNorm(S_t' q_t / sqrt(K)) * silu(W_g x))
//
// H heads of key width K and value width V. State: S [B, H, K, V] fp32.
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/heads.h"
#include "nn/mixers/linear_state.h"
#include "ops/norm/norm.h"
#include "ops/rope/rope.h"
#include "ops/shape.h"

namespace weft {
namespace {

class RetNet final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, head_dim = 0, value_dim = 0;
    double rope = 10000;
    void fields(Fields& f) {
      f("heads", heads, "H, heads; head h keeps 1 - 2^(-5 - h) of its state each token", at_least(1),
        at_most(32));
      f("head_dim", head_dim, "K, width of a key head, even; 0 means width / heads", at_least(0),
        at_most(256));
      f("value_dim", value_dim, "V, width of a value head; 0 means 2 K", at_least(0), at_most(512));
      f("rope", rope, "base of the rotary embedding of q and k; 0 means none", at_least(0));
    }
  };

  RetNet(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        q_(linear("q", site.width, o_.heads * o_.head_dim)),
        k_(linear("k", site.width, o_.heads * o_.head_dim)),
        v_(linear("v", site.width, o_.heads * o_.value_dim)),
        gate_(linear("gate", site.width, o_.heads * o_.value_dim)),
        norm_(norm("norm", Norm::Kind::rms, o_.value_dim, site.norm_eps)),
        out_(linear("out", o_.heads * o_.value_dim, site.width, {.scale = site.residual_init()})),
        log_decay_(at::log1p(-at::pow(2.0, -5 - at::arange(o_.heads, at::kDouble)))) {}

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
    state.set("S", matrix_state(batch, o_.heads, o_.head_dim, o_.value_dim, options));
    return state;
  }

  double op_flops(int64_t) const override {
    return static_cast<double>(4 * o_.heads * o_.head_dim * o_.value_dim);
  }
  std::vector<std::string> ops() const override {
    if (o_.rope == 0) return {"linear_attention", "norm"};
    return {"linear_attention", "norm", "rope"};
  }

 private:
  static Options resolved(Options o, const Site& site) {
    o.head_dim = head_dim_of(o.head_dim, o.heads, site);
    if (o.value_dim == 0) o.value_dim = 2 * o.head_dim;
    require(o.rope == 0 || o.head_dim % 2 == 0,
            "{}: the rotary embedding turns pairs of channels: head_dim {} must be even, or rope 0",
            site.where, o.head_dim);
    return o;
  }

  ops::LinearAttention problem(const at::Tensor& x, const Context& context) const {
    const auto rotated = [&](const Linear& map) {
      const auto y = map(x).unflatten(-1, {o_.heads, o_.head_dim});
      return o_.rope == 0 ? y : ops::rope(y, context.positions, {.theta = o_.rope});
    };
    return {.q = rotated(q_),
            .k = rotated(k_),
            .v = v_(x).unflatten(-1, {o_.heads, o_.value_dim}),
            .log_decay = log_decay_.to(x.options().dtype(accumulate_type(x))),
            .starts = context.starts};
  }

  at::Tensor finish(const at::Tensor& y, const at::Tensor& x) const {
    const auto gate = gate_(x).unflatten(-1, {o_.heads, o_.value_dim});
    return out_(
        ops::gated_rms_norm(y, gate, norm_.weight(), norm_.eps(), /*norm_before_gate=*/true).flatten(2));
  }

  Options o_;
  Linear q_, k_, v_, gate_;
  Norm norm_;
  Linear out_;
  at::Tensor log_decay_;  // [H] fp64
};
const Register<RetNet> register_retnet{"retnet",
                                       "retention: matrix state with a fixed decay for each head; use it as "
                                       "the simplest linear baseline, not for recall"};

}  // namespace
}  // namespace weft
