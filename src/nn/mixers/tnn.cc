// Toeplitz neural network: mixing by a matrix that depends on the distance of tokens only, given by a small network of it.
// Qin et al. 2023, arXiv:2305.04749.
//   t[n] = decay^n RPE(n), n = 0 .. L - 1;  RPE: three linear maps with relu between, of n / L
//   y = W_o (silu(W_u x) * (t * silu(W_v x)))                       the paper's gated Toeplitz unit, left to right
// Tokens more than `length` back are not seen.
//
// E inner width, L taps. State: inputs [B, L - 1, E] in the activation type.
#include <cmath>

#include "nn/mixers/long_filter.h"
#include "ops/shape.h"

namespace weft {
namespace {

class Tnn final : public SequenceMixer {
 public:
  struct Options {
    int64_t length = 1024, inner = 0, hidden = 64;
    double decay = 0.99;
    void fields(Fields& f) {
      f("length", length, "L, distances; tokens further back are not seen", at_least(1));
      f("inner", inner, "E, inner width; 0 means the model width", at_least(0));
      f("hidden", hidden, "width of the network of the distance", at_least(1));
      f("decay", decay, "by which a distance of one more weighs less", above(0), at_most(1));
    }
  };

  Tnn(const Options& options, const Site& site)
      : o_(options),
        inner_(options.inner > 0 ? options.inner : site.width),
        gate_(linear("gate", site.width, inner_)),
        in_(linear("in", site.width, inner_)),
        out_(linear("out", inner_, site.width, {.scale = site.residual_init()})) {
    const auto rules = ParameterRules{.role = ParameterRules::Role::vector, .keep_float = true};
    const double wide = std::sqrt(1.0 / static_cast<double>(o_.hidden));
    w1_ = parameter("rpe.w1", {o_.hidden, 1}, init::normal(1), rules);
    b1_ = parameter("rpe.b1", {o_.hidden}, init::normal(1), rules);
    w2_ = parameter("rpe.w2", {o_.hidden, o_.hidden}, init::normal(wide), rules);
    b2_ = parameter("rpe.b2", {o_.hidden}, init::constant(0), rules);
    w3_ = parameter("rpe.w3", {inner_, o_.hidden}, init::normal(wide), rules);
    b3_ = parameter("rpe.b3", {inner_}, init::constant(0), rules);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    return finish(run_filter(kernel(), at::silu(in_(x)), state, context), x);
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context&) override {
    return finish(step_filter(kernel(), at::silu(in_(x)), state), x);
  }
  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    add_filter_state(state, batch, inner_, o_.length, options);
    return state;
  }
  double op_flops(int64_t) const override { return 2.0 * static_cast<double>(inner_ * o_.length); }
  std::vector<std::string> ops() const override { return {"conv"}; }

 private:
  at::Tensor kernel() const {  // [E, L]
    const auto options = w1_->value.options();
    const auto distance = at::arange(o_.length, options).unsqueeze(1);
    auto h = at::relu(at::linear(distance / static_cast<double>(o_.length), w1_->value, b1_->value));
    h = at::relu(at::linear(h, w2_->value, b2_->value));
    const auto weights = at::linear(h, w3_->value, b3_->value);  // [L, E]
    return (at::exp(distance * std::log(o_.decay)) * weights).t().contiguous();
  }
  at::Tensor finish(const at::Tensor& y, const at::Tensor& x) const { return out_(at::silu(gate_(x)) * y); }

  Options o_;
  int64_t inner_;
  Linear gate_, in_, out_;
  std::shared_ptr<Parameter> w1_, b1_, w2_, b2_, w3_, b3_;
};
const Register<Tnn> register_tnn{"tnn",
                                 "gated convolution whose taps a small network gives (Toeplitz neural "
                                 "network); for text of bounded reach"};

}  // namespace
}  // namespace weft
