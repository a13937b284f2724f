// sLSTM: an LSTM whose input gate is exponential, with a normaliser and a stabiliser, in xLSTM's block. Beck et
// al. 2024, arXiv:2405.04517; heads as in Pöppel et al. 2024, arXiv:2412.07752.
//   u = silu(conv(x));  i, f = W_if u + R h + b;  z, o = W_zo x + R h + b      W block-diagonal over heads
//   c = sigmoid(f) c + e^i tanh(z);  n = sigmoid(f) n + e^i;  h = sigmoid(o) c / n
//   y = W_out norm(h)
// The cell keeps c and n divided by e^m, m the largest exponent so far, which leaves h as it is.
//
// H heads of width K, W width of the convolution.
// State: cells [B, 4, H, K] fp32, h, c / n, 1 (0 before the first token), m + log n; conv [B, W - 1, D] in the activation type.
#include "base/error.h"
#include "nn/mixers/rnn_layer.h"
#include "ops/conv/conv.h"

namespace weft {
namespace {

// xLSTM's forget gates at the start of training: in each head from 5 (keeps 0.993) down to -7 (keeps 0.001), and
// deeper layers have more that keep.
void initialize_forget_bias(at::Tensor& bias, const Site& site) {  // [H, K]
  const int64_t width = bias.size(-1);
  const double depth =
      site.num_layers > 1 ? static_cast<double>(site.layer) / static_cast<double>(site.num_layers - 1) : 0.0;
  const auto place = at::arange(width, at::kDouble) / static_cast<double>(std::max<int64_t>(width - 1, 1));
  bias.copy_(5 - 12 * place.pow(0.3 + 1.3 * depth));
}

// c, n and m stand for c e^m and n e^m. The cell takes m for a constant, so its own c, n and m have no gradients of
// their own; c / n and m + log n, which do not depend on the choice of m, have. So a state is kept with n = 1 (0: no
// token yet), and m hands its gradient to c and n on the way in. states [4, B, H, K].
at::Tensor settled(const at::Tensor& states) {
  const auto fresh = states[2] == 0;
  const auto n = at::where(fresh, at::ones_like(states[2]), states[2]);
  return at::stack(
      {states[0], states[1] / n, fresh.logical_not().to(n.scalar_type()), states[3] + at::log(n)});
}
at::Tensor for_the_cell(const at::Tensor& states) {
  const auto state = settled(states);
  const auto m = state[3].detach(), one = at::exp(state[3] - m);
  return at::stack({state[0], state[1] * one, state[2] * one, m});
}

class Slstm final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, head_dim = 0, conv = 4;
    bool head_norm = true, block_gates = true;
    void fields(Fields& f) {
      f("heads", heads, "H, heads with recurrent weights of their own", at_least(1));
      f("head_dim", head_dim, "K, width of one head; 0 means width / heads", at_least(0));
      f("conv", conv, "W, width of the short convolution in front of i and f; 0 means none", at_least(0),
        at_most(16));
      f("head_norm", head_norm, "layer norm of each head behind the cell");
      f("block_gates", block_gates,
        "each head's gates see their part of the input only, width / heads of it");
    }
  };

  Slstm(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        eps_(site.norm_eps),
        width_(site.width),
        out_(linear("out", o_.heads * o_.head_dim, site.width, {.scale = site.residual_init()})) {
    const int64_t blocks = o_.block_gates ? o_.heads : 1;
    const auto small = init::normal(std::sqrt(2.0 / (5.0 * static_cast<double>(site.width))));
    const std::vector<int64_t> sizes{blocks, 2 * o_.heads * o_.head_dim / blocks, site.width / blocks};
    keep_ = parameter("in_if.weight", sizes, small);
    write_ = parameter("in_zo.weight", sizes, small);
    recurrent_ = parameter("recurrent", {4, o_.heads, o_.head_dim, o_.head_dim}, init::constant(0));
    bias_ = vector_parameter("bias", {4, o_.heads, o_.head_dim}, [site](at::Tensor& value, at::Generator&) {
      value.zero_();
      auto forget = value.select(0, 1);
      initialize_forget_bias(forget, site);
    });
    if (o_.conv > 0) {
      const double bound = 1.0 / std::sqrt(static_cast<double>(o_.conv));
      conv_ = vector_parameter("conv.weight", {site.width, o_.conv}, init::uniform(-bound, bound));
      conv_bias_ = vector_parameter("conv.bias", {site.width}, init::constant(0));
    }
    if (o_.head_norm) norm_ = vector_parameter("norm.weight", {o_.heads * o_.head_dim}, init::constant(1));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    auto u = x;
    if (conv_) {
      auto conv = ops::short_conv({.x = x,
                                   .weight = conv_->value,
                                   .bias = conv_bias_->value,
                                   .silu = true,
                                   .initial_state = state.at("conv"),
                                   .starts = context.starts});
      state.set("conv", conv.state);
      u = conv.y;
    }
    const auto result = ops::rnn({.cell = "slstm",
                                  .wx = at::cat({gates(u, keep_->value), gates(x, write_->value)}, 2),
                                  .recurrent = recurrent_->value,
                                  .bias = bias_->value,
                                  .initial_state = for_the_cell(state.at("cells").transpose(0, 1)),
                                  .starts = context.starts});
    state.set("cells", settled(result.state).transpose(0, 1));
    return out_(head_norm(result.h, norm_ ? norm_->value : at::Tensor(), eps_));
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("cells", at::zeros({batch, 4, o_.heads, o_.head_dim}, state_options(options)));
    if (conv_) state.set("conv", at::zeros({batch, o_.conv - 1, width_}, options));
    return state;
  }

  Summary summary(const at::Tensor&, const State&, const Context&) override { no_affine_summary("slstm"); }

  double op_flops(int64_t) const override { return 2.0 * static_cast<double>(width_ * o_.conv); }
  std::vector<std::string> ops() const override {
    return conv_ ? std::vector<std::string>{"conv", "rnn", "norm"} : std::vector<std::string>{"rnn", "norm"};
  }

 private:
  static Options resolved(Options o, const Site& site) {
    o.head_dim = head_dim_of(o.head_dim, o.heads, site);
    require(!o.block_gates || site.width % o.heads == 0,
            "{}: heads {} does not divide width {}; set block_gates: false", site.where, o.heads, site.width);
    require(o.conv != 1, "{}: conv is 1, which is no convolution; give 0 or at least 2", site.where);
    return o;
  }

  // Two gates of all heads: [B, T, 2, H, K]
  at::Tensor gates(const at::Tensor& x, const at::Tensor& weight) const {
    const auto y = block_linear(x, weight);
    if (!o_.block_gates) return y.reshape({x.size(0), x.size(1), 2, o_.heads, o_.head_dim});
    return y.unflatten(-1, {2, o_.head_dim}).transpose(2, 3);
  }

  Options o_;
  double eps_;
  int64_t width_;
  Linear out_;
  std::shared_ptr<Parameter> keep_, write_, recurrent_, bias_, conv_, conv_bias_, norm_;
};
const Register<Slstm> register_slstm{
    "slstm",
    "sLSTM of xLSTM (Beck et al. 2024): exponential input gate with a normaliser, in its block; use it for "
    "state tracking where new inputs must be able to overwrite what is stored"};

}  // namespace
}  // namespace weft
