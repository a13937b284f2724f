// DSS: a diagonal state space whose kernel is normalised over its length, so that growing modes are allowed too. Gupta et
// al. 2022, arXiv:2203.14343 (DSS-softmax; its DSS-exp is s4d).
//   K[l] = Re sum_n C_n / lambda_n softmax_l(dt lambda_n l),  l < L;  m = K * x + D x;  y = GLU(W GELU(m))
// The kernel belongs to its length L: that of a shorter one is no prefix of it. Tokens more than `length` back are not
// seen.
//
// E = D channels of N complex states, L taps. State: inputs [B, L - 1, E] in the activation type.
#include <cmath>

#include "base/error.h"
#include "nn/mixers/hippo.h"
#include "nn/mixers/long_filter.h"
#include "nn/mixers/ssm.h"

namespace weft {
namespace {

class Dss final : public SequenceMixer {
 public:
  struct Options {
    int64_t states = 64, length = 1024;
    double dt_min = 1e-3, dt_max = 0.1, lr_scale = 0.1;
    std::string activation = "glu";
    void fields(Fields& f) {
      f("states", states, "twice N: half as many complex states are kept", at_least(2));
      f("length", length, "L, taps; tokens further back are not seen", at_least(1));
      f("dt_min", dt_min, "smallest step size at the start", above(0));
      f("dt_max", dt_max, "largest step size at the start", above(0));
      f("ssm_lr_scale", lr_scale, "rate of step sizes and state matrices relative to the rest", above(0));
      f("activation", activation, "what follows the state space", ssm_activation());
    }
  };

  Dss(const Options& options, const Site& site)
      : o_(options), width_(site.width), out_(options.activation, width_, site) {
    require(o_.states % 2 == 0, "{}: states {} must be even", site.where, o_.states);
    add_child("output", out_);
    at::Generator unused;
    const auto lambda = hippo::diagonal("legs", o_.states, unused).lambda;
    const auto rules = ssm_rules(o_.lr_scale);
    log_dt_ = parameter("log_dt", {width_}, init_log_step(o_.dt_min, o_.dt_max), rules);
    lambda_ = parameter("lambda", {o_.states / 2, 2}, init_rows(lambda), rules);
    c_ = parameter("C", {width_, o_.states / 2, 2}, init_complex_normal(std::sqrt(0.5)), ssm_rules(1));
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
  at::Tensor kernel() const {  // [E, L] in the type of the parameters
    const auto lambda = complex_of(lambda_);
    const auto z = log_dt_->value.to(at::kDouble).exp().unsqueeze(1) * lambda;  // [E, N]
    // The largest power of each mode becomes 1: that of the first tap, or of the last where the mode grows.
    const auto taps = at::arange(o_.length, at::TensorOptions(at::kDouble).device(z.device()));
    const auto growing = (at::real(z) > 0).to(at::kDouble).unsqueeze(-1) * static_cast<double>(o_.length - 1);
    const auto powers = at::exp(z.unsqueeze(-1) * (taps - growing));  // [E, N, L]
    const auto sum = powers.sum(-1, /*keepdim=*/true);
    constexpr double kSmall = 1e-7;  // keeps sums that vanish from dividing
    const auto inverse = sum.conj() / (at::real(sum * sum.conj()) + kSmall);
    const auto weights = (complex_of(c_) / lambda).unsqueeze(1);  // [E, 1, N]
    return at::real(at::matmul(weights, powers * inverse)).squeeze(1).to(c_->value.scalar_type());
  }
  at::Tensor finish(const at::Tensor& y, const at::Tensor& x) const {
    return out_(y + skip_->value.to(y.scalar_type()) * x, x);
  }

  Options o_;
  int64_t width_;
  SsmOutput out_;
  std::shared_ptr<Parameter> log_dt_, lambda_, c_, skip_;
};
const Register<Dss> register_dss{
    "dss",
    "diagonal state space with a kernel normalised over its length (DSS-softmax); for rows of one length"};

}  // namespace
}  // namespace weft
