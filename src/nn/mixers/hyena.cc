// Hyena: long convolutions with implicit filters and products between them. Poli et al. 2023, arXiv:2302.10866.
//   x^0 .. x^{O-1}, v = short_conv(W_in x)
//   v <- h_o * (v x^o) + D_o (v x^o)   for o = O - 1 .. 1;     y = W_out (v x^0)
//   h_o[t] = MLP(features(t / (L - 1))) (exp(-(t / (L - 1)) |d|) + shift),   sines between its linear maps
// features: the place and pairs of waves of growing frequency. The grid of places belongs to `length`: a filter of
// another length is another filter. Each filter reaches L - 1 tokens back, all together (O - 1) (L - 1) + W - 1.
//
// E = D channels, L taps, O order, W width of the short convolution.
// State: conv [B, W - 1, (O + 1) E], inputs1 .. inputs{O-1} [B, L - 1, E], all in the activation type.
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "nn/mixers/long_filter.h"
#include "ops/conv/conv.h"

namespace weft {
namespace {

class Hyena final : public SequenceMixer {
 public:
  struct Options {
    int64_t length = 1024, order = 2, conv = 3, features = 5, hidden = 64;
    double frequency = 10, shift = 0.05, lr_scale = 1;
    void fields(Fields& f) {
      f("length", length, "L, taps of each of the O - 1 filters", at_least(2));
      f("order", order, "O, products; O - 1 long convolutions", at_least(2), at_most(8));
      f("conv", conv, "W, width of the short convolution", at_least(2), at_most(16));
      f("features", features, "of a place: itself and pairs of waves, so an odd number", at_least(3));
      f("hidden", hidden, "width of the filters' network", at_least(1));
      f("frequency", frequency, "of the sines in the filters' network at the start", above(0));
      f("shift", shift, "least weight of the window", at_least(0));
      f("filter_lr_scale", lr_scale, "rate of the filters relative to the rest", above(0));
    }
  };

  Hyena(const Options& options, const Site& site)
      : o_(options),
        width_(site.width),
        in_(linear("in", width_, (o_.order + 1) * width_, {.bias = true})),
        out_(linear("out", width_, width_, {.bias = true, .scale = site.residual_init()})) {
    require(o_.features % 2 == 1, "{}: features {} must be odd", site.where, o_.features);
    const double bound = 1 / std::sqrt(static_cast<double>(o_.conv));
    conv_ = vector_parameter("conv.weight", {(o_.order + 1) * width_, o_.conv}, init::uniform(-bound, bound));
    const ParameterRules rules{.role = ParameterRules::Role::vector,
                               .lr_scale = o_.lr_scale,
                               .weight_decay = false,
                               .keep_float = true};
    const auto layer = [&](const std::string& name, int64_t in, int64_t out) {
      return parameter(name, {out, in}, init::normal(1 / std::sqrt(3 * static_cast<double>(in))), rules);
    };
    const int64_t channels = (o_.order - 1) * width_;
    w1_ = layer("filter.w1", o_.features, o_.hidden);
    w2_ = layer("filter.w2", o_.hidden, o_.hidden);
    w3_ = layer("filter.w3", o_.hidden, channels);
    b1_ = parameter("filter.b1", {o_.hidden}, init::uniform(-0.5, 0.5), rules);
    b2_ = parameter("filter.b2", {o_.hidden}, init::uniform(-0.1, 0.1), rules);
    frequency_ = parameter("filter.frequency", {o_.hidden}, init::constant(o_.frequency), rules);
    skip_ = vector_parameter("filter.D", {channels}, init::normal(1));
    rate_ = vector_parameter("filter.decay", {channels}, [](at::Tensor& value, at::Generator&) {
      // From a window that falls to 1 % at 0.3 of the length to one that does at 1.5 of it.
      value.copy_(at::linspace(std::log(100) / 1.5, std::log(100) / 0.3, value.size(0)));
    });
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto conv = ops::short_conv(
        {.x = in_(x), .weight = conv_->value, .initial_state = state.at("conv"), .starts = context.starts});
    state.set("conv", conv.state);
    return mix(conv.y, [&](const at::Tensor& kernel, const at::Tensor& u, const std::string& name) {
      return run_filter(kernel, u, state, context, name);
    });
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context&) override {
    const auto z =
        ops::short_conv_step({.x = in_(x), .weight = conv_->value, .initial_state = state.writable("conv")});
    return mix(z, [&](const at::Tensor& kernel, const at::Tensor& u, const std::string& name) {
      return step_filter(kernel, u, state, name);
    });
  }
  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("conv", at::zeros({batch, o_.conv - 1, (o_.order + 1) * width_}, options));
    for (int64_t o = 1; o < o_.order; ++o)
      add_filter_state(state, batch, width_, o_.length, options, name_of(o));
    return state;
  }
  double op_flops(int64_t) const override {
    return 2.0 * static_cast<double>((o_.order - 1) * width_ * o_.length + (o_.order + 1) * width_ * o_.conv);
  }
  std::vector<std::string> ops() const override { return {"conv"}; }

 private:
  static std::string name_of(int64_t order) { return "inputs" + std::to_string(order); }

  template <class Filter>
  at::Tensor mix(const at::Tensor& z, const Filter& filter) const {
    const auto parts = z.chunk(o_.order + 1, -1);
    const auto kernels = filters().split(width_, 0), skips = skip_->value.split(width_, 0);
    auto v = parts.back();
    for (int64_t o = o_.order - 1; o >= 1; --o) {
      const auto i = static_cast<size_t>(o);
      const auto u = v * parts[i];
      v = filter(kernels[i - 1], u, name_of(o)) + skips[i - 1].to(u.scalar_type()) * u;
    }
    return out_(v * parts[0]);
  }

  at::Tensor filters() const {  // [(O - 1) E, L]
    const auto options = w1_->value.options();
    const auto place = at::linspace(0, 1, o_.length, options).unsqueeze(1);
    const int64_t waves = (o_.features - 1) / 2;
    const auto rates = at::linspace(1e-4, static_cast<double>(waves) - 1 + 1e-4, waves, options);
    const auto angle = 2 * std::numbers::pi / static_cast<double>(o_.length) *
                       at::arange(o_.length, options).unsqueeze(1) * rates;
    auto h = at::cat({place, at::cos(angle), -at::sin(angle)}, 1);
    h = at::sin(frequency_->value * at::linear(h, w1_->value, b1_->value));
    h = at::sin(frequency_->value * at::linear(h, w2_->value, b2_->value));
    const auto window = at::exp(-place * rate_->value.abs()) + o_.shift;  // [L, (O - 1) E]
    return (at::linear(h, w3_->value) * window).t().contiguous();
  }

  Options o_;
  int64_t width_;
  Linear in_, out_;
  std::shared_ptr<Parameter> conv_, w1_, w2_, w3_, b1_, b2_, frequency_, skip_, rate_;
};
const Register<Hyena> register_hyena{"hyena",
                                     "products between long convolutions with implicit filters (Hyena); "
                                     "recall within the length of its filters"};

}  // namespace
}  // namespace weft
