// A long convolution whose taps are learned one by one. Fu et al. 2023, arXiv:2302.06646.
//   k = sign(w) relu(|w| - shrink);  m = k * x + D x;  y = GLU(W GELU(m))
// Taps below `shrink` are zero, and have no gradient until they are pushed over it. At the start taps are normal, falling
// off exponentially over the length, faster in channels of low number. Tokens more than `length` back are not seen.
//
// E = D channels, L taps. State: inputs [B, L - 1, E] in the activation type.
#include "nn/mixers/long_filter.h"
#include "nn/mixers/ssm.h"

namespace weft {
namespace {

class LongConv final : public SequenceMixer {
 public:
  struct Options {
    int64_t length = 1024;
    double shrink = 0.001, std = 0.02;
    std::string activation = "glu";
    void fields(Fields& f) {
      f("length", length, "L, taps; tokens further back are not seen", at_least(1));
      f("shrink", shrink, "taps are moved towards 0 by this much", at_least(0));
      f("init_std", std, "of the first taps at the start", above(0));
      f("activation", activation, "what follows the convolution", ssm_activation());
    }
  };

  LongConv(const Options& options, const Site& site)
      : o_(options), width_(site.width), out_(options.activation, width_, site) {
    add_child("output", out_);
    const double std = o_.std;
    kernel_ =
        vector_parameter("kernel", {width_, o_.length}, [std](at::Tensor& value, at::Generator& random) {
          value.normal_(0, std, random);
          const auto channels = at::arange(value.size(0)) / value.size(0),
                     taps = at::arange(value.size(1)) / value.size(1);
          const auto rate = at::pow(0.5 * static_cast<double>(value.size(0)), 1 - channels).unsqueeze(1);
          value.mul_(at::exp(-taps * rate));
        });
    skip_ = vector_parameter("D", {width_}, init::normal(1));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    return finish(run_filter(kernel(), x, state, context), x);
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context&) override {
    return finish(step_filter(kernel(), x, state), x);
  }
  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    add_filter_state(state, batch, width_, o_.length, options);
    return state;
  }
  double op_flops(int64_t) const override { return 2.0 * static_cast<double>(width_ * o_.length); }
  std::vector<std::string> ops() const override { return {"conv"}; }

 private:
  at::Tensor kernel() const { return kernel_->value.sign() * at::relu(kernel_->value.abs() - o_.shrink); }
  at::Tensor finish(const at::Tensor& y, const at::Tensor& x) const {
    return out_(y + skip_->value.to(y.scalar_type()) * x, x);
  }

  Options o_;
  int64_t width_;
  SsmOutput out_;
  std::shared_ptr<Parameter> kernel_, skip_;
};
const Register<LongConv> register_long_conv{
    "long_conv", "long convolution with free taps; a plain baseline for signals of bounded memory"};

}  // namespace
}  // namespace weft
