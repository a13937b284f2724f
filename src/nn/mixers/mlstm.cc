// mLSTM: a matrix state with an exponential input gate, read relative to a normaliser. Beck et al. 2024,
// arXiv:2405.04517 (xLSTM).
//   u = silu(conv(x));  q = W_q u;  k = W_k u / sqrt(K);  v = W_v x
//   C_t = f_t C_{t-1} + e^{i_t} k_t v_t';  n_t = f_t n_{t-1} + e^{i_t} k_t
//   y_t = W_o (head_norm(C_t' q_t / max(|n_t . q_t|, 1)) * sigmoid(W_g x + b_g))
// i and log f are one number a head: i = cap(w_i . x + b_i), and f = sigmoid or exp of cap(w_f . x + b_f), where
// cap(z) = c tanh(z / c) with gate_cap c (Beck et al. 2025, arXiv:2503.13427: xLSTM 7B).
//
// Neither e^i nor C need fit a float: C and n are kept divided by e^m, where m follows the largest term they hold,
//   m_t = max(0, i_t, log f_t + m_{t-1}),  m_0 = 0,
// so that the state decays by log f_t + m_{t-1} - m_t <= 0 and takes up e^{i_t - m_t} <= 1: a case of
// ops::linear_attention, with n as one more value column that always writes 1. The bound 1 becomes e^{-m} <= 1; m need
// not go below 0, since then the bound is the larger anyway. The output does not depend on m.
//
// xLSTM 7B divides by max(|n . q|, e^{-m}) + eps in scaled terms, which does depend on m: there, with eps > 0,
//   m_t = max(i_t, log f_t + m_{t-1}),  m_0 = 0.
//
// H heads of width K for keys, V for values, W width of the convolution.
// State: conv [B, W - 1, D] in the activation type; S [B, H, K, V + 1] (C and n) and m [B, H] fp32.
#include <cmath>

#include "base/error.h"
#include "nn/mixer.h"
#include "nn/mixers/heads.h"
#include "nn/mixers/linear_state.h"
#include "nn/mixers/rwkv.h"
#include "nn/mixers/step_size.h"
#include "ops/conv/conv.h"
#include "ops/shape.h"

namespace weft {
namespace {

// m_t = max(low_t, rise_t + m_{t-1}) for all tokens [B, T, H] in log2 T passes: after each, a token holds the map of
// twice as many tokens up to it. rise may be -inf.
at::Tensor running_max(at::Tensor rise, at::Tensor low, const at::Tensor& before) {
  const int64_t tokens = low.size(1);
  for (int64_t span = 1; span < tokens; span *= 2) {
    const auto late = [&](const at::Tensor& x) { return x.slice(1, span); };
    const auto early = [&](const at::Tensor& x) { return x.slice(1, 0, tokens - span); };
    const auto first = [&](const at::Tensor& x) { return x.slice(1, 0, span); };
    low = at::cat({first(low), at::maximum(late(low), late(rise) + early(low))}, 1);
    rise = at::cat({first(rise), late(rise) + early(rise)}, 1);
  }
  return at::maximum(low, rise + before.unsqueeze(1));
}

class Mlstm final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, head_dim = 0, value_dim = 0, conv = 4;
    std::string forget_gate = "sigmoid";
    double gate_cap = 0, eps = 0;
    bool bias = false, gate_bias = true;
    void fields(Fields& f) {
      f("heads", heads, "H, heads", at_least(1));
      f("head_dim", head_dim, "K, width of a head's keys; 0 means width / heads", at_least(0), at_most(1024));
      f("value_dim", value_dim, "V, width of a head's values; 0 means head_dim", at_least(0), at_most(1024));
      f("conv", conv, "W, width of the short convolution before q and k; 0 means none", at_least(0),
        at_most(16));
      f("forget_gate", forget_gate, "activation of the forget gate", one_of({"sigmoid", "exp"}));
      f("gate_cap", gate_cap, "c: input and forget gates are c tanh(z / c) before use; 0 means as they are",
        at_least(0));
      f("eps", eps, "added to the divisor; above 0 also lets m fall below 0, as in xLSTM 7B", at_least(0));
      f("bias", bias, "biases on q, k, v, the output projection and the norm of the heads");
      f("gate_bias", gate_bias, "bias of the output gate");
    }
  };

  Mlstm(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        width_(site.width),
        q_(linear("q", width_, o_.heads * o_.head_dim, {.bias = o_.bias})),
        k_(linear("k", width_, o_.heads * o_.head_dim, {.bias = o_.bias})),
        v_(linear("v", width_, o_.heads * o_.value_dim, {.bias = o_.bias})),
        input_(linear("input_gate", width_, o_.heads, {.scale = 0})),
        forget_(linear("forget_gate", width_, o_.heads, {.scale = 0})),
        gate_(linear("gate", width_, o_.heads * o_.value_dim, {.bias = o_.gate_bias})),
        out_(
            linear("out", o_.heads * o_.value_dim, width_, {.bias = o_.bias, .scale = site.residual_init()})),
        input_bias_(vector_parameter("input_bias", {o_.heads}, init::normal(0.1))),
        forget_bias_(vector_parameter("forget_bias", {o_.heads},
                                      init_ramp([exp = o_.forget_gate == "exp"](const at::Tensor& ramp) {
                                        const auto bias = 3 + 3 * ramp;  // equal decays with either gate
                                        return exp ? at::log_sigmoid(bias) : bias;
                                      }))),
        norm_weight_(vector_parameter("norm.weight", {o_.heads * o_.value_dim}, init::constant(1))),
        norm_eps_(site.norm_eps) {
    if (o_.bias) norm_bias_ = vector_parameter("norm.bias", {o_.heads * o_.value_dim}, init::constant(0));
    if (o_.conv == 0) return;
    const double bound = 1.0 / std::sqrt(static_cast<double>(o_.conv));
    conv_ = vector_parameter("conv.weight", {width_, o_.conv}, init::uniform(-bound, bound));
    conv_bias_ = vector_parameter("conv.bias", {width_}, init::constant(0));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    return forward(x, state, context, attend);
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    return forward(x, state, context, attend_step);
  }
  Summary summary(const at::Tensor&, const State&, const Context&) override {
    throw Unsupported(
        "mlstm has no affine summary: its state is scaled by a running maximum, which is not an affine map; "
        "run spans in order");
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    if (o_.conv > 0) state.set("conv", at::zeros({batch, o_.conv - 1, width_}, options));
    state.set("S", matrix_state(batch, o_.heads, o_.head_dim, o_.value_dim + 1, options));
    state.set("m", at::zeros({batch, o_.heads}, state_options(options)));
    return state;
  }

  double op_flops(int64_t) const override {
    return static_cast<double>(4 * o_.heads * o_.head_dim * (o_.value_dim + 1) + 2 * width_ * o_.conv);
  }
  std::vector<std::string> ops() const override {
    if (o_.conv == 0) return {"linear_attention", "norm"};
    return {"conv", "linear_attention", "norm"};
  }

 private:
  static Options resolved(Options o, const Site& site) {
    o.head_dim = head_dim_of(o.head_dim, o.heads, site);
    if (o.value_dim == 0) o.value_dim = o.head_dim;
    require(o.conv != 1, "{}: conv 1 is no convolution; give 0 or at least 2", site.where);
    return o;
  }

  at::Tensor convolved(const at::Tensor& x, State& state, const Context& context) const {
    if (o_.conv == 0) return x;
    const auto conv = ops::short_conv({.x = x,
                                       .weight = conv_->value,
                                       .bias = conv_bias_->value,
                                       .silu = true,
                                       .initial_state = state.at("conv"),
                                       .starts = context.starts});
    state.set("conv", conv.state);
    return conv.y;
  }

  struct Gates {
    at::Tensor log_decay, write;  // [B, T, H] of the scaled state
    at::Tensor m;                 // [B, T, H]
  };

  Gates gates(const at::Tensor& x, const at::Tensor& before, const Context& context) const {
    const auto wide = accumulate_type(x);
    const auto cap = [&](const at::Tensor& z) {
      return o_.gate_cap > 0 ? at::tanh(z / o_.gate_cap) * o_.gate_cap : z;
    };
    const auto input = cap(input_(x).to(wide) + input_bias_->value);
    auto keep = cap(forget_(x).to(wide) + forget_bias_->value);  // log f
    if (o_.forget_gate == "sigmoid") keep = at::log_sigmoid(keep);
    const auto& starts = context.starts;
    const auto fresh = starts.defined() ? starts.unsqueeze(-1) : at::Tensor();
    const auto rise =
        fresh.defined() ? keep.masked_fill(fresh, -std::numeric_limits<double>::infinity()) : keep;
    auto low = o_.eps > 0 ? input : input.clamp_min(0);
    if (o_.eps > 0 && fresh.defined())
      low = at::where(fresh, at::maximum(input, keep), low);  // m_{t-1} is 0 there
    const auto m = running_max(rise, low, before);
    const auto previous = at::cat({before.unsqueeze(1), m}, 1).slice(1, 0, m.size(1));
    auto log_decay = keep + previous - m;
    if (fresh.defined())
      log_decay = log_decay.masked_fill(fresh, 0);  // of a state that is dropped; may be > 0
    return {log_decay, at::exp(input - m), m};
  }

  at::Tensor forward(const at::Tensor& x, State& state, const Context& context, Attend form) const {
    const auto wide = accumulate_type(x);
    const auto split = [&](const at::Tensor& y, int64_t dim) {
      return y.to(wide).unflatten(-1, {o_.heads, dim});
    };
    const auto u = convolved(x, state, context);
    const auto g = gates(x, state.at("m"), context);
    if (x.size(1) > 0) state.set("m", g.m.select(1, x.size(1) - 1).contiguous());
    const auto v = split(v_(x), o_.value_dim);
    // In fp32, since the quotient below would see the rounding of both its parts.
    const auto y = form({.q = split(q_(u), o_.head_dim),
                         .k = split(k_(u), o_.head_dim),
                         .v = at::cat({v, at::ones_like(v.slice(-1, 0, 1))}, -1),
                         .log_decay = g.log_decay,
                         .write = g.write,
                         .starts = context.starts},
                        state);  // [B, T, H, V + 1]
    const auto size = at::maximum(y.slice(-1, o_.value_dim).abs(), at::exp(-g.m).unsqueeze(-1)) + o_.eps;
    const auto read = (y.slice(-1, 0, o_.value_dim) / size).to(x.scalar_type());
    const auto normed =
        head_norm(read, norm_weight_->value, norm_bias_ ? norm_bias_->value : at::Tensor(), norm_eps_);
    return out_(normed * at::sigmoid(gate_(x)));
  }

  Options o_;
  int64_t width_;
  Linear q_, k_, v_, input_, forget_, gate_, out_;
  std::shared_ptr<Parameter> input_bias_, forget_bias_, norm_weight_, norm_bias_, conv_, conv_bias_;
  double norm_eps_;
};
const Register<Mlstm> register_mlstm{
    "mlstm",
    "mLSTM of xLSTM: matrix state with exponential input gates and a normaliser; use it where single tokens "
    "must be able to overrule everything before"};

}  // namespace
}  // namespace weft
