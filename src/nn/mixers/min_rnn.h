// What minGRU and minLSTM share: gates that read the input only, so that the recurrence is a scan. Feng et al.
// 2024, "Were RNNs all we needed?", arXiv:2410.01201.
//   u = silu(conv(x)) or x;  g_1, .., g_n, v = W u + b;  a, i = gates of g
//   h_t = a_t * h_{t-1} + i_t * candidate(v_t);  y = W_out h
// candidate(v) = v, or, as the paper does to work with logarithms, v + 1/2 above 0 and sigmoid(v) below: positive.
// No logarithms are needed here: a and i are in (0, 1) and the scan adds numbers of one size.
//
// E channels, W width of the convolution. State: h [B, E] fp32; conv [B, W - 1, D] in the activation type.
#pragma once

#include <cmath>

#include "base/error.h"
#include "nn/mixers/scan_layer.h"
#include "nn/mixers/step_size.h"
#include "ops/conv/conv.h"
#include "ops/shape.h"

namespace weft {

// Kind has
//   static constexpr int64_t gates;                     n
//   static ScanGates open(std::vector<at::Tensor> g)    a, and i as b, of n sums [B, T, E]
//   static void initialize_bias(at::Tensor& bias)       [n + 1, E], zeros before
template <class Kind>
class MinRnn final : public SequenceMixer {
 public:
  struct Options {
    int64_t inner = 0, conv = 0;
    bool positive = true;
    void fields(Fields& f) {
      f("inner", inner, "E, channels; 0 means the model width", at_least(0));
      f("conv", conv, "W, width of a short convolution in front; 0 means none", at_least(0), at_most(16));
      f("positive", positive, "candidates are made positive");
    }
  };

  MinRnn(const Options& options, const Site& site)
      : o_(resolved(options, site)),
        width_(site.width),
        in_(linear("in", site.width, (Kind::gates + 1) * o_.inner)),
        out_(linear("out", o_.inner, site.width, {.scale = site.residual_init()})) {
    bias_ = vector_parameter("bias", {Kind::gates + 1, o_.inner}, [](at::Tensor& value, at::Generator&) {
      value.zero_();
      Kind::initialize_bias(value);
    });
    if (o_.conv == 0) return;
    const double reach = 1.0 / std::sqrt(static_cast<double>(o_.conv));
    conv_ = vector_parameter("conv.weight", {width_, o_.conv}, init::uniform(-reach, reach));
    conv_bias_ = vector_parameter("conv.bias", {width_}, init::constant(0));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto gates = inputs(x, state, context);
    return out_(run_scan(gates, state, context).to(x.scalar_type()));
  }

  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    const auto gates = inputs(x, state, context);
    if (context.starts.defined()) return out_(run_scan(gates, state, context).to(x.scalar_type()));
    return out_(step_scan(gates, state).to(x.scalar_type()));
  }

  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    Summary summary;
    State moved = state;
    summary.maps["h"] = scan_summary(inputs(x, moved, context), context);
    if (conv_) summary.rest.set("conv", moved.at("conv"));
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("h", at::zeros({batch, o_.inner}, state_options(options)));
    if (conv_) state.set("conv", at::zeros({batch, o_.conv - 1, width_}, options));
    return state;
  }

  double op_flops(int64_t) const override { return 2.0 * static_cast<double>(o_.inner + width_ * o_.conv); }
  std::vector<std::string> ops() const override {
    return conv_ ? std::vector<std::string>{"conv", "scan"} : std::vector<std::string>{"scan"};
  }

 private:
  static Options resolved(Options o, const Site& site) {
    if (o.inner == 0) o.inner = site.width;
    require(o.conv != 1, "{}: conv is 1, which is no convolution; give 0 or at least 2", site.where);
    return o;
  }

  // Moves the convolution's state.
  ScanGates inputs(const at::Tensor& x, State& state, const Context& context) const {
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
    auto sums = (in_(u).to(accumulate_type(x)).unflatten(-1, {Kind::gates + 1, o_.inner}) + bias_->value)
                    .unbind(2);  // [B, T, E] each
    auto candidate = sums.back();
    sums.pop_back();
    if (o_.positive) candidate = at::where(candidate >= 0, candidate + 0.5, at::sigmoid(candidate));
    auto gates = Kind::open(sums);
    gates.b = gates.b * candidate;
    return gates;
  }

  Options o_;
  int64_t width_;
  Linear in_, out_;
  std::shared_ptr<Parameter> bias_, conv_, conv_bias_;
};

}  // namespace weft
