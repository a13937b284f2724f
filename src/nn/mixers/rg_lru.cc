// RG-LRU, the recurrent block of Hawk and Griffin: a real diagonal scan whose decay and input are gated. De et
// al. 2024, arXiv:2402.19427.
//   u = conv(W_u x + b_u)                                        width W, with a bias
//   r = sigmoid(W_r u + b_r);  i = sigmoid(W_i u + b_i)          block-diagonal, H blocks
//   log a_t = -c softplus(lambda) r_t,  c = 8
//   h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t * u_t)
//   y = W_out (h * gelu(W_g x + b_g)) + b_out
// With unit_start the first token of a document has the factor 1 instead of sqrt(1 - a^2) (RecurrentGemma).
//
// E channels. State: h [B, E] fp32; conv [B, W - 1, E] in the activation type.
#include <cmath>

#include "base/error.h"
#include "nn/mixers/rnn_layer.h"
#include "nn/mixers/scan_layer.h"
#include "ops/activation/named.h"
#include "ops/conv/conv.h"
#include "ops/shape.h"

namespace weft {
namespace {

constexpr double kSharpness = 8;  // c: a reaches from 1 down to softplus(lambda)'s c-th power

class RgLru final : public SequenceMixer {
 public:
  struct Options {
    int64_t heads = 4, inner = 0, conv = 4;
    std::string activation = "gelu_tanh";
    bool unit_start = false;
    void fields(Fields& f) {
      f("heads", heads, "H, blocks of the gates' weights", at_least(1));
      f("inner", inner, "E, channels; 0 means the model width (Griffin: 4/3 of it)", at_least(0));
      f("conv", conv, "W, width of the short convolution", at_least(2), at_most(16));
      f("activation", activation, "of the branch that multiplies h", one_of(ops::activation_names()));
      f("unit_start", unit_start, "the first token of a document enters h unscaled, with factor 1");
    }
  };

  RgLru(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        activation_(ops::activation_of(o_.activation)),
        in_(linear("in", site.width, 2 * o_.inner, {.bias = true})),
        out_(linear("out", o_.inner, site.width, {.bias = true, .scale = site.residual_init()})) {
    const int64_t block = o_.inner / o_.heads;
    const double reach = 1.0 / std::sqrt(static_cast<double>(o_.conv));
    conv_ = vector_parameter("conv.weight", {o_.inner, o_.conv}, init::uniform(-reach, reach));
    conv_bias_ = vector_parameter("conv.bias", {o_.inner}, init::constant(0));
    gates_ = parameter("gates.weight", {o_.heads, 2 * block, block},
                       init::normal(1.0 / std::sqrt(static_cast<double>(block))));
    gates_bias_ = vector_parameter("gates.bias", {2, o_.inner}, init::constant(0));
    // An open gate, r = 1, keeps a share of h that is uniform in [0.9, 0.999].
    lambda_ = vector_parameter("lambda", {o_.inner}, [](at::Tensor& value, at::Generator& random) {
      value.uniform_(0.9, 0.999, random);
      value.copy_(at::expm1(-at::log(value) / kSharpness).log());
    });
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto in = inputs(x, state.at("conv"), context);
    state.set("conv", in.conv_state);
    return finish(run_scan(in.gates, state, context), in.branch);
  }

  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    if (context.starts.defined()) return run(x, state, context);
    const auto in = inputs(x, state.at("conv"), context);
    state.set("conv", in.conv_state);
    return finish(step_scan(in.gates, state), in.branch);
  }

  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    const auto in = inputs(x, state.at("conv"), context);
    Summary summary;
    summary.maps["h"] = scan_summary(in.gates, context);
    summary.rest.set("conv", in.conv_state);
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("conv", at::zeros({batch, o_.conv - 1, o_.inner}, options));
    state.set("h", at::zeros({batch, o_.inner}, state_options(options)));
    return state;
  }

  double op_flops(int64_t) const override { return static_cast<double>(o_.inner * (10 + 2 * o_.conv)); }
  std::vector<std::string> ops() const override { return {"conv", "scan"}; }

 private:
  struct Inputs {
    ScanGates gates;
    at::Tensor branch, conv_state;
  };

  static Options resolved(Options o, const Site& site) {
    if (o.inner == 0) o.inner = site.width;
    require(o.inner % o.heads == 0, "{}: heads {} does not divide inner {}", site.where, o.heads, o.inner);
    return o;
  }

  Inputs inputs(const at::Tensor& x, const at::Tensor& conv_state, const Context& context) const {
    const auto parts = in_(x).chunk(2, -1);
    const auto conv = ops::short_conv({.x = parts[0],
                                       .weight = conv_->value,
                                       .bias = conv_bias_->value,
                                       .initial_state = conv_state,
                                       .starts = context.starts});
    const auto wide = accumulate_type(x);
    const auto sums = block_linear(conv.y, gates_->value)
                          .to(wide)
                          .unflatten(-1, {2, o_.inner / o_.heads})
                          .transpose(2, 3)
                          .flatten(3);  // [B, T, 2, E]
    const auto open = at::sigmoid(sums + gates_bias_->value).unbind(2);
    const auto log_a = -kSharpness * at::softplus(lambda_->value) * open[0];
    // 1 - a^2 of a tiny |log a|; the clamp keeps the root's slope finite where it is 0.
    auto rest = at::sqrt(at::clamp_min(-at::expm1(2 * log_a), 1e-30));
    if (o_.unit_start) rest = rest.masked_fill((context.positions == 0).unsqueeze(-1), 1);
    return {
        {at::exp(log_a), rest * open[1] * conv.y.to(wide)}, ops::activate(activation_, parts[1]), conv.state};
  }

  at::Tensor finish(const at::Tensor& h, const at::Tensor& branch) const {
    return out_(h.to(branch.scalar_type()) * branch);
  }

  Options o_;
  ops::Activation activation_;
  Linear in_, out_;
  std::shared_ptr<Parameter> conv_, conv_bias_, gates_, gates_bias_, lambda_;
};
const Register<RgLru> register_rg_lru{"rg_lru",
                                      "RG-LRU, the gated diagonal scan of Hawk and Griffin; use it beside "
                                      "windowed attention for long text at a "
                                      "small state"};

}  // namespace
}  // namespace weft
