// Gated short convolution, the mixer of LFM2 (Liquid AI 2025).
//   b, c, u = W_in x;  y = W_out (c * conv(b * u))        causal, depthwise, no activation
// State: the last W - 1 values of b * u, [B, W - 1, D].
#include <cmath>

#include "nn/mixer.h"
#include "ops/conv/conv.h"

namespace weft {
namespace {

class ShortConvMixer final : public SequenceMixer {
 public:
  struct Options {
    int64_t conv = 3;
    bool bias = false;
    void fields(Fields& f) {
      f("conv", conv, "W, width of the convolution", at_least(2), at_most(16));
      f("bias", bias, "biases on the projections and the convolution");
    }
  };

  ShortConvMixer(const Options& options, const Site& site)
      : width_(site.width),
        window_(options.conv),
        in_(linear("in", width_, 3 * width_, {.bias = options.bias})),
        out_(linear("out", width_, width_, {.bias = options.bias, .scale = site.residual_init()})) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(window_));
    conv_ = vector_parameter("conv.weight", {width_, window_}, init::uniform(-bound, bound));
    if (options.bias) conv_bias_ = vector_parameter("conv.bias", {width_}, init::constant(0));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto parts = in_(x).chunk(3, -1);
    auto result = convolve(parts[0] * parts[2], state, context);
    state.set("conv", result.state);
    return out_(parts[1] * result.y);
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("conv", at::zeros({batch, window_ - 1, width_}, options));
    return state;
  }
  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    const auto parts = in_(x).chunk(3, -1);
    Summary summary;
    summary.rest.set("conv", convolve(parts[0] * parts[2], state, context).state);
    return summary;
  }
  double op_flops(int64_t) const override { return 2.0 * static_cast<double>(width_ * window_); }
  std::vector<std::string> ops() const override { return {"conv"}; }

 private:
  ops::ShortConvResult convolve(const at::Tensor& u, const State& state, const Context& context) const {
    return ops::short_conv({.x = u,
                            .weight = conv_->value,
                            .bias = conv_bias_ ? conv_bias_->value : at::Tensor(),
                            .initial_state = state.at("conv"),
                            .starts = context.starts});
  }

  int64_t width_, window_;
  Linear in_, out_;
  std::shared_ptr<Parameter> conv_, conv_bias_;
};
const Register<ShortConvMixer> register_short_conv{"short_conv", "gated short convolution (LFM2)"};

}  // namespace
}  // namespace weft
