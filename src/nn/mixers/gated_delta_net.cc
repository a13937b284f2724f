// Gated DeltaNet: a matrix state with a scalar decay and the delta rule. Yang et al. 2024, arXiv:2412.06464.
//   q, k, v = f(conv(W_qkv x));  q, k to unit length per head   f: silu unless told otherwise
//   beta = sigmoid(W_b x) (times 2 with negative_eigenvalues)
//   g = -exp(A_log) softplus(W_a x + dt_bias)                   fp32
//   S_t = e^{g_t} (I - beta_t k_t k_t') S_{t-1} + beta_t k_t v_t'
//   y_t = W_o (RMSNorm(S_t' q_t / sqrt(K)) * silu(W_g x))
//
// H key heads of width K, U value heads (a multiple of H) of width V.
// State: conv [B, W - 1, 2 H K + U V] in the activation type, S [B, U, K, V] fp32.
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/delta_rows.h"
#include "nn/mixers/in_place.h"
#include "nn/mixers/step_size.h"
#include "ops/linear/linear.h"
#include "ops/linear_attention/delta_step.h"
#include "ops/linear_attention/linear_attention.h"
#include "ops/norm/norm.h"
#include "ops/shape.h"

namespace weft {
namespace {

class GatedDeltaNet final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, head_dim = 64, value_heads = 0, value_dim = 0, conv = 4;
    bool negative_eigenvalues = false, output_gate = true;
    std::string activation = "silu", gate_activation = "silu";
    double out_norm_eps = 0;
    void fields(Fields& f) {
      f("heads", heads, "H, key heads", at_least(1));
      f("head_dim", head_dim, "K, width of a key head", at_least(1), at_most(256));
      f("value_heads", value_heads, "U, value heads, a multiple of heads; 0 means as many", at_least(0));
      f("value_dim", value_dim, "V, width of a value head; 0 means head_dim", at_least(0), at_most(256));
      f("conv", conv, "W, width of the short convolution on q, k, v", at_least(2), at_most(16));
      f("negative_eigenvalues", negative_eigenvalues, "erase strength in [0, 2] instead of [0, 1]");
      f("output_gate", output_gate, "multiply the normed read-out by an activation of W_g x");
      f("gate_activation", gate_activation, "of that gate", one_of({"silu", "sigmoid"}));
      f("activation", activation, "behind the short convolution", one_of(ops::activation_names()));
      f("out_norm_eps", out_norm_eps, "of the norm of the read-out; 0 means the layer's norm_eps",
        at_least(0));
    }
  };

  GatedDeltaNet(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        activation_(ops::activation_of(o_.activation)),
        keys_(o_.heads * o_.head_dim),
        values_(o_.value_heads * o_.value_dim),
        qkv_(linear("qkv", site.width, 2 * keys_ + values_)),
        beta_(linear("beta", site.width, o_.value_heads)),
        decay_(linear("decay", site.width, o_.value_heads)),
        out_(linear("out", values_, site.width, {.scale = site.residual_init()})) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(o_.conv));
    conv_ = vector_parameter("conv.weight", {2 * keys_ + values_, o_.conv}, init::uniform(-bound, bound));
    a_log_ = vector_parameter("A_log", {o_.value_heads}, init_log_uniform(0, 16));
    dt_bias_ = vector_parameter("dt_bias", {o_.value_heads}, init_step_size(1e-3, 0.1));
    norm_ =
        norm("norm", Norm::Kind::rms, o_.value_dim, o_.out_norm_eps > 0 ? o_.out_norm_eps : site.norm_eps);
    if (o_.output_gate) gate_ = linear("gate", site.width, values_);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    auto in = inputs(x, state, context);
    in.problem.initial_state = state.at("S");
    auto result = ops::linear_attention(in.problem);
    state.set("conv", in.conv_state);
    state.set("S", result.state);
    return finish(result.y, x, context);
  }

  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    if (steps_in_one(context)) return one_step(x, state);
    auto in = inputs(x, state, context);
    state.set("conv", in.conv_state);
    in.problem.initial_state = state.writable("S");
    return finish(ops::linear_attention_step(in.problem).y, x, context);
  }

  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    const auto in = inputs(x, state, context);
    const auto span = ops::linear_attention_summary(in.problem);
    Summary summary;
    summary.maps["S"] = {span.factor, span.offset, span.matrix};
    summary.rest.set("conv", in.conv_state);
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("conv", at::zeros({batch, o_.conv - 1, 2 * keys_ + values_}, options));
    state.set("S", at::zeros({batch, o_.value_heads, o_.head_dim, o_.value_dim}, state_options(options)));
    return state;
  }

  std::vector<std::string> export_ports() const override { return {"memory"}; }
  double op_flops(int64_t) const override {
    return static_cast<double>(6 * o_.value_heads * o_.head_dim * o_.value_dim +
                               2 * (2 * keys_ + values_) * o_.conv);
  }
  std::vector<std::string> ops() const override { return {"conv", "linear_attention", "norm"}; }

 private:
  struct Inputs {
    ops::LinearAttention problem;  // without the initial state
    at::Tensor conv_state;
  };

  // Whether the op for a whole token has what this one wants.
  bool steps_in_one(const Context& context) const {
    return activation_ == ops::Activation::silu && (!o_.output_gate || o_.gate_activation == "silu") &&
           !context.starts.defined() && !context.wants("memory");
  }
  at::Tensor one_step(const at::Tensor& x, State& state) const {
    std::vector<at::Tensor> weights{qkv_.weight(), beta_.weight(), decay_.weight()};
    if (o_.output_gate) weights.push_back(gate_.weight());
    const auto rows = ops::linear(x, weights);
    return out_(ops::delta_step({.key_heads = o_.heads,
                                 .x = rows[0],
                                 .conv_weight = conv_->value,
                                 .conv_state = in_place(state, "conv"),
                                 .beta = rows[1],
                                 .decay = rows[2],
                                 .beta_scale = o_.negative_eigenvalues ? 2.0 : 1.0,
                                 .a_log = a_log_->value,
                                 .dt_bias = dt_bias_->value,
                                 .key_eps = kDeltaKeyEps,
                                 .state = in_place(state, "S"),
                                 .norm_weight = norm_.weight(),
                                 .norm_eps = norm_.eps(),
                                 .gate = o_.output_gate ? rows[3] : at::Tensor()}));
  }

  static Options resolved(Options o, const Site& site) {
    if (o.value_heads == 0) o.value_heads = o.heads;
    if (o.value_dim == 0) o.value_dim = o.head_dim;
    require(o.value_heads % o.heads == 0, "{}: value_heads {} is not a multiple of heads {}", site.where,
            o.value_heads, o.heads);
    return o;
  }

  Inputs inputs(const at::Tensor& x, const State& state, const Context& context) const {
    const auto rows = delta_rows(qkv_(x), conv_->value, state.at("conv"), context.starts,
                                 {o_.heads, o_.head_dim, o_.value_heads, o_.value_dim}, activation_);
    const auto wide = accumulate_type(x);
    auto beta = at::sigmoid(beta_(x).to(wide));
    if (o_.negative_eigenvalues) beta = 2 * beta;
    const auto log_decay =
        -a_log_->value.exp() * at::softplus(decay_(x).to(wide) + dt_bias_->value);  // [B, T, U]
    return {{.q = rows.q,
             .k = rows.k,
             .v = rows.v,
             .log_decay = log_decay,
             .beta = beta,
             .starts = context.starts},
            rows.conv_state};
  }

  at::Tensor finish(const at::Tensor& y, const at::Tensor& x, const Context& context) const {
    if (context.wants("memory")) (*context.exports)["memory"] = {.tensors = {{"memory", y.flatten(2)}}};
    if (!o_.output_gate) return out_(norm_(y).flatten(2));
    const auto gate = gate_(x).unflatten(-1, {o_.value_heads, o_.value_dim});
    if (o_.gate_activation == "sigmoid")
      return out_((norm_(y) * at::sigmoid(gate).to(y.scalar_type())).flatten(2));
    return out_(
        ops::gated_rms_norm(y, gate, norm_.weight(), norm_.eps(), /*norm_before_gate=*/true).flatten(2));
  }

  Options o_;
  ops::Activation activation_;
  int64_t keys_, values_;
  Linear qkv_, beta_, decay_, gate_, out_;
  std::shared_ptr<Parameter> conv_, a_log_, dt_bias_;
  Norm norm_;
};
const Register<GatedDeltaNet> register_gated_delta_net{
    "gated_delta_net",
    "Gated DeltaNet: matrix state with scalar decay and the delta rule; use it as the linear part of a "
    "hybrid, three to six layers for one of attention"};

}  // namespace
}  // namespace weft
