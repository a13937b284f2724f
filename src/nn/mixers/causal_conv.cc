// Short causal depthwise convolution with nothing around it, on its own or as a stage of a chain (Inkling):
//   y_t = scale (act(b + sum_{j < W} w_j x_{t-j}) + (skip ? x_t : 0))
// State: the last max(W, 2) - 1 inputs, [B, max(W, 2) - 1, D].
#include <algorithm>
#include <cmath>

#include "nn/mixer.h"
#include "ops/conv/conv.h"

namespace weft {
namespace {

class CausalConv final : public SequenceMixer {
 public:
  struct Options {
    int64_t conv = 4;
    bool skip = true, bias = false, silu = false;
    double scale = 1;
    void fields(Fields& f) {
      f("conv", conv, "W, width of the convolution; 1 sees the token itself only", at_least(1), at_most(16));
      f("skip", skip, "add the input to the output");
      f("bias", bias, "bias of the convolution");
      f("silu", silu, "SiLU behind the convolution");
      f("scale", scale, "multiplies the output");
    }
  };

  CausalConv(const Options& options, const Site& site) : o_(options), width_(site.width) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(o_.conv));
    weight_ = vector_parameter("conv.weight", {width_, o_.conv}, init::uniform(-bound, bound));
    if (o_.bias) bias_ = vector_parameter("conv.bias", {width_}, init::constant(0));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    auto result = convolve(x, state, context);
    state.set("conv", result.state);
    const auto y = o_.skip ? result.y + x : result.y;
    return o_.scale == 1.0 ? y : y * o_.scale;
  }
  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    Summary summary;
    summary.rest.set("conv", convolve(x, state, context).state);
    return summary;
  }
  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("conv", at::zeros({batch, std::max<int64_t>(o_.conv, 2) - 1, width_}, options));
    return state;
  }
  double op_flops(int64_t) const override { return 2.0 * static_cast<double>(width_ * o_.conv); }
  std::vector<std::string> ops() const override { return {"conv"}; }

 private:
  ops::ShortConvResult convolve(const at::Tensor& x, const State& state, const Context& context) const {
    return ops::short_conv(
        {.x = x,
         .weight = o_.conv == 1 ? at::constant_pad_nd(weight_->value, {1, 0}) : weight_->value,
         .bias = bias_ ? bias_->value : at::Tensor(),
         .silu = o_.silu,
         .initial_state = state.at("conv"),
         .starts = context.starts});
  }

  Options o_;
  int64_t width_;
  std::shared_ptr<Parameter> weight_, bias_;
};
const Register<CausalConv> register_causal_conv{"causal_conv", "short causal depthwise convolution, alone"};

}  // namespace
}  // namespace weft
