// Kimi Delta Attention: the delta rule with a decay of its own for every key channel. Kimi Team 2025,
// arXiv:2510.26692.
//   q, k, v = f(conv(W_qkv x));  q, k to unit length per head   f: silu unless told otherwise
//   beta = sigmoid(W_b x)                                       fp32
//   u = W_2 W_1 x + dt_bias                                     fp32; or W_d x + dt_bias
//   g = -exp(A_log) softplus(u), or bound * sigmoid(exp(A_log) u)        A_log one number a head, bound < 0
//   S_t = (I - beta_t k_t k_t') diag(e^{g_t}) S_{t-1} + beta_t k_t v_t'
//   y_t = W_o (RMSNorm(S_t' q_t / sqrt(K)) * sigmoid(W_4 W_3 x + b))     or sigmoid(W_g x + b)
//
// H heads of key width K and value width V, W width of the convolution; W_1 and W_3 have rank V unless told otherwise.
// State: conv [B, W - 1, H (2 K + V)] in the activation type, S [B, H, K, V] fp32.
#include <cmath>

#include "nn/mixer.h"
#include "nn/mixers/delta_rows.h"
#include "nn/mixers/heads.h"
#include "nn/mixers/linear_state.h"
#include "nn/mixers/step_size.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Kda final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, head_dim = 0, value_dim = 0, conv = 4, rank = 0;
    bool full_decay = false, full_gate = false, gate_bias = true;
    double decay_bound = 0;
    std::string activation = "silu";
    void fields(Fields& f) {
      f("heads", heads, "H, heads", at_least(1));
      f("head_dim", head_dim, "K, width of a key head; 0 means width / heads", at_least(0), at_most(256));
      f("value_dim", value_dim, "V, width of a value head; 0 means K", at_least(0), at_most(256));
      f("conv", conv, "W, width of the short convolution on q, k, v", at_least(2), at_most(16));
      f("rank", rank, "of the projections of decay and output gate; 0 means V", at_least(0));
      f("full_decay", full_decay, "one projection for the decay instead of two of low rank");
      f("full_gate", full_gate, "one projection for the output gate instead of two of low rank");
      f("gate_bias", gate_bias, "bias on the output gate");
      f("decay_bound", decay_bound,
        "log decay is this times sigmoid(exp(A_log) u), never lower; 0 means -exp(A_log) softplus(u)",
        at_most(0));
      f("activation", activation, "behind the short convolution", one_of(ops::activation_names()));
    }
  };

  Kda(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        activation_(ops::activation_of(o_.activation)),
        sizes_{o_.heads, o_.head_dim, o_.heads, o_.value_dim},
        qkv_(linear("qkv", site.width, sizes_.channels())),
        beta_(linear("beta", site.width, o_.heads)),
        norm_(norm("norm", Norm::Kind::rms, o_.value_dim, site.norm_eps)),
        out_(linear("out", o_.heads * o_.value_dim, site.width, {.scale = site.residual_init()})) {
    if (!o_.full_decay) decay_in_ = linear("decay_in", site.width, o_.rank);
    decay_out_ = linear(o_.full_decay ? "decay" : "decay_out", o_.full_decay ? site.width : o_.rank,
                        o_.heads * o_.head_dim);
    if (!o_.full_gate) gate_in_ = linear("gate_in", site.width, o_.rank);
    gate_out_ = linear(o_.full_gate ? "gate" : "gate_out", o_.full_gate ? site.width : o_.rank,
                       o_.heads * o_.value_dim, {.bias = o_.gate_bias});
    const double bound = 1.0 / std::sqrt(static_cast<double>(o_.conv));
    conv_ = vector_parameter("conv.weight", {sizes_.channels(), o_.conv}, init::uniform(-bound, bound));
    a_log_ = vector_parameter("A_log", {o_.heads}, init_log_uniform(1, 16));
    dt_bias_ = vector_parameter("dt_bias", {o_.heads * o_.head_dim}, init_step_size(1e-3, 0.1));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    return forward(x, state, context, attend);
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    return forward(x, state, context, attend_step);
  }
  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    const auto in = inputs(x, state, context);
    Summary summary;
    summary.maps["S"] = attend_summary(in.problem);
    summary.rest.set("conv", in.conv_state);
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("conv", at::zeros({batch, o_.conv - 1, sizes_.channels()}, options));
    state.set("S", matrix_state(batch, o_.heads, o_.head_dim, o_.value_dim, options));
    return state;
  }

  double op_flops(int64_t) const override {
    return static_cast<double>(6 * o_.heads * o_.head_dim * o_.value_dim + 2 * sizes_.channels() * o_.conv);
  }
  std::vector<std::string> ops() const override { return {"conv", "linear_attention", "norm"}; }

 private:
  struct Inputs {
    ops::LinearAttention problem;  // without the initial state
    at::Tensor conv_state;
  };

  static Options resolved(Options o, const Site& site) {
    o.head_dim = head_dim_of(o.head_dim, o.heads, site);
    if (o.value_dim == 0) o.value_dim = o.head_dim;
    if (o.rank == 0) o.rank = o.value_dim;
    return o;
  }

  Inputs inputs(const at::Tensor& x, const State& state, const Context& context) const {
    const auto rows =
        delta_rows(qkv_(x), conv_->value, state.at("conv"), context.starts, sizes_, activation_);
    const auto wide = accumulate_type(x);
    return {{.q = rows.q,
             .k = rows.k,
             .v = rows.v,
             .log_decay = log_decay(decay_out_(o_.full_decay ? x : decay_in_(x)).to(wide)),
             .beta = at::sigmoid(beta_(x).to(wide)),
             .starts = context.starts},
            rows.conv_state};
  }

  // [B, T, H K] -> [B, T, H, K]
  at::Tensor log_decay(const at::Tensor& projected) const {
    const auto u = (projected + dt_bias_->value).unflatten(-1, {o_.heads, o_.head_dim});
    const auto pace = a_log_->value.exp().unsqueeze(-1);
    return o_.decay_bound < 0 ? at::sigmoid(pace * u) * o_.decay_bound : at::softplus(u) * -pace;
  }

  at::Tensor forward(const at::Tensor& x, State& state, const Context& context, Attend form) const {
    const auto in = inputs(x, state, context);
    state.set("conv", in.conv_state);
    const auto read = norm_(form(in.problem, state)).flatten(2);
    return out_(read * at::sigmoid(gate_out_(o_.full_gate ? x : gate_in_(x))));
  }

  Options o_;
  ops::Activation activation_;
  DeltaSizes sizes_;
  Linear qkv_, beta_, decay_in_, decay_out_, gate_in_, gate_out_;
  Norm norm_;
  Linear out_;
  std::shared_ptr<Parameter> conv_, a_log_, dt_bias_;
};
const Register<Kda> register_kda{
    "kda",
    "Kimi Delta Attention: matrix state with the delta rule and a decay for each key channel; use it where "
    "recall and selective forgetting both matter, three layers for one of attention"};

}  // namespace
}  // namespace weft
