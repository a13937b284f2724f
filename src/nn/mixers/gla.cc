// Gated linear attention: a matrix state with a decay of its own for every key channel, set by the token. Yang et
// al. 2023, arXiv:2312.06635.
//   q = W_q x;  k = W_k x;  v = W_v x
//   g = log sigmoid(W_2 W_1 x + b) / temperature                fp32
//   S_t = diag(e^{g_t}) S_{t-1} + k_t v_t'
//   y_t = W_o (RMSNorm(S_t' q_t / sqrt(K)) * silu(W_g x))
//
// H heads of key width K and value width V. State: S [B, H, K, V] fp32.
#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/linear_state.h"
#include "ops/norm/norm.h"
#include "ops/shape.h"

namespace weft {
namespace {

class GatedLinearAttention final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, head_dim = 0, value_dim = 0, gate_rank = 16;
    double temperature = 16;
    void fields(Fields& f) {
      f("heads", heads, "H, heads", at_least(1));
      f("head_dim", head_dim, "K, width of a key head; 0 means width / (2 heads)", at_least(0), at_most(256));
      f("value_dim", value_dim, "V, width of a value head; 0 means 2 K", at_least(0), at_most(512));
      f("gate_rank", gate_rank, "rank of the projection to the decays", at_least(1));
      f("temperature", temperature, "divides the log decays: larger forgets more slowly", above(0));
    }
  };

  GatedLinearAttention(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        q_(linear("q", site.width, o_.heads * o_.head_dim)),
        k_(linear("k", site.width, o_.heads * o_.head_dim)),
        v_(linear("v", site.width, o_.heads * o_.value_dim)),
        decay_in_(linear("decay_in", site.width, o_.gate_rank)),
        decay_out_(linear("decay_out", o_.gate_rank, o_.heads * o_.head_dim)),
        decay_bias_(vector_parameter("decay_bias", {o_.heads * o_.head_dim}, init::constant(0))),
        gate_(linear("gate", site.width, o_.heads * o_.value_dim)),
        norm_(norm("norm", Norm::Kind::rms, o_.value_dim, site.norm_eps)),
        out_(linear("out", o_.heads * o_.value_dim, site.width, {.scale = site.residual_init()})) {}

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
  std::vector<std::string> ops() const override { return {"linear_attention", "norm"}; }

 private:
  static Options resolved(Options o, const Site& site) {
    if (o.head_dim == 0) {
      require(site.width % (2 * o.heads) == 0, "{}: twice heads {} does not divide width {}; give head_dim",
              site.where, o.heads, site.width);
      o.head_dim = site.width / (2 * o.heads);
    }
    if (o.value_dim == 0) o.value_dim = 2 * o.head_dim;
    return o;
  }

  ops::LinearAttention problem(const at::Tensor& x, const Context& context) const {
    const std::vector<int64_t> keys = {o_.heads, o_.head_dim};
    const auto decay = decay_out_(decay_in_(x)).to(accumulate_type(x)) + decay_bias_->value;
    return {.q = q_(x).unflatten(-1, keys),
            .k = k_(x).unflatten(-1, keys),
            .v = v_(x).unflatten(-1, {o_.heads, o_.value_dim}),
            .log_decay = (at::log_sigmoid(decay) / o_.temperature).unflatten(-1, keys),
            .starts = context.starts};
  }

  at::Tensor finish(const at::Tensor& y, const at::Tensor& x) const {
    const auto gate = gate_(x).unflatten(-1, {o_.heads, o_.value_dim});
    return out_(
        ops::gated_rms_norm(y, gate, norm_.weight(), norm_.eps(), /*norm_before_gate=*/true).flatten(2));
  }

  Options o_;
  Linear q_, k_, v_, decay_in_, decay_out_;
  std::shared_ptr<Parameter> decay_bias_;
  Linear gate_;
  Norm norm_;
  Linear out_;
};
const Register<GatedLinearAttention> register_gla{
    "gla",
    "gated linear attention: matrix state with token-dependent decays for each key channel; use it for long "
    "texts where forgetting matters more than exact recall"};

}  // namespace
}  // namespace weft
