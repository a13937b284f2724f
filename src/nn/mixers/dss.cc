// DSS: a diagonal state space for every channel, its input map folded into the output map. Gupta, Gu and Berant 2022,
// arXiv:2203.14343.
//   z = exp(log_dt) lambda
//   exp      lambda = -exp(A_re_log) + i A_im;   K[l] = 2 Re sum_n C_n (exp(z_n) - 1) / lambda_n exp(l z_n)
//            as a recurrence: h_t = exp(z) h_{t-1} + (exp(z) - 1) / lambda x_t,   (K * x)_t = 2 Re(C . h_t)
//   softmax  lambda = A_re + i A_im, any real part;   L taps, K[l < L] = the same over exp(L z_n) - 1
//   m = K * x + D x;   y_t = GLU(W GELU(m_t))
// exp is S4D without B. softmax normalises every mode over its L taps, up to the sign 1 / lambda has: modes with
// Re lambda > 0 grow towards the oldest of the taps, so they have no recurrence that lasts, and the mixer keeps inputs.
//
// E = D channels of N states, N / 2 complex ones kept. State: exp h [B, E, N / 2, 2, 1] fp32, real and imaginary parts;
// softmax inputs [B, L - 1, E], the last ones in the activation type.
#include <cmath>

#include "base/error.h"
#include "nn/mixers/hippo.h"
#include "nn/mixers/long_filter.h"
#include "nn/mixers/ssm.h"
#include "ops/shape.h"

namespace weft {
namespace {

// Keeps the sum over a mode's taps away from 0, where the softmax has no value; 1 + 1e-14 of it elsewhere.
constexpr double kSmallestSum = 1e-14;

class Dss final : public SequenceMixer {
 public:
  struct Options {
    int64_t states = 64, copies = 1, length = 1024;
    std::string kernel = "exp", init = "legs", activation = "glu";
    double dt_min = 1e-3, dt_max = 0.1, lr_scale = 0.1;
    void fields(Fields& f) {
      f("states", states, "N, states of a channel; half as many complex ones are kept", at_least(2));
      f("copies", copies, "state matrices, each shared by width / copies channels", at_least(1));
      f("kernel", kernel, "a recurrence without end, or modes normalised over a window",
        one_of({"exp", "softmax"}));
      f("length", length, "L, taps of the softmax kernel", at_least(1));
      f("init", init, "state matrix at the start", one_of({"legs", "lin", "inv", "real"}));
      f("dt_min", dt_min, "smallest step size at the start", above(0));
      f("dt_max", dt_max, "largest step size at the start", above(0));
      f("ssm_lr_scale", lr_scale, "rate of step sizes and state matrices relative to the rest", above(0));
      f("activation", activation, "what follows the state space", ssm_activation());
    }
  };

  Dss(const Options& options, const Site& site)
      : o_(options), softmax_(o_.kernel == "softmax"), width_(site.width), out_(o_.activation, width_, site) {
    require(o_.states % 2 == 0, "{}: states {} must be even, conjugate pairs are kept as one", site.where,
            o_.states);
    require(width_ % o_.copies == 0, "{}: copies {} does not divide the width {}", site.where, o_.copies,
            width_);
    require(o_.dt_min <= o_.dt_max, "{}: dt_min {} is larger than dt_max {}", site.where, o_.dt_min,
            o_.dt_max);
    at::Generator unused;  // none of these draws
    const auto lambda = hippo::diagonal(o_.init, o_.states, unused).lambda;
    const int64_t pairs = o_.states / 2;
    const auto rules = ssm_rules(o_.lr_scale);
    const auto real = at::real(lambda).contiguous();
    log_dt_ = parameter("log_dt", {width_}, init_log_step(o_.dt_min, o_.dt_max), rules);
    rate_ = softmax_ ? parameter("A_re", {o_.copies, pairs}, init_rows(real), rules)
                     : parameter("A_re_log", {o_.copies, pairs}, init_rows(at::log(-real)), rules);
    frequency_ = parameter("A_im", {o_.copies, pairs}, init_rows(at::imag(lambda).contiguous()), rules);
    c_ = parameter("C", {width_, pairs, 2}, init_complex_normal(std::sqrt(0.5)), ssm_rules(1));
    skip_ = vector_parameter("D", {width_}, init::normal(1));
    add_child("output", out_);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    if (!softmax_) return out_(run_bank(bank(), x, state, context), x);
    return finish(run_filter(taps(x), x, state, context), x);
  }

  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    if (context.starts.defined()) return run(x, state, context);
    return softmax_ ? finish(step_filter(taps(x), x, state), x) : out_(step_bank(bank(), x, state), x);
  }

  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    Summary summary;
    if (softmax_) {
      summary.rest = state;
      run_filter(taps(x), x, summary.rest, context);
    } else {
      summary.maps["h"] = bank_map(bank(), x, context);
    }
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    if (softmax_)
      add_filter_state(state, batch, width_, o_.length, options);
    else
      state.set("h", bank_state(batch, width_, o_.states / 2, true, options));
    return state;
  }

  double op_flops(int64_t) const override { return static_cast<double>(width_ * o_.states * 12); }
  std::vector<std::string> ops() const override { return {"conv"}; }

 private:
  // lambda and z for every channel, [E, N / 2] complex fp64.
  struct Modes {
    at::Tensor lambda, z;
  };
  Modes modes() const {
    const auto rate = rate_->value.to(at::kDouble);
    const auto lambda = at::complex(softmax_ ? rate : -at::exp(rate), frequency_->value.to(at::kDouble))
                            .repeat_interleave(width_ / o_.copies, 0);
    return {lambda, at::exp(log_dt_->value.to(at::kDouble)).unsqueeze(-1) * lambda};
  }

  DiagonalBank bank() const {
    const auto m = modes();
    const auto a = at::exp(m.z);
    return {a, (a - 1) / m.lambda, 2 * complex_of(c_), skip_->value};
  }

  // The softmax kernel [E, L] in the type that x is summed in. A growing mode is a decaying one read from its other
  // end, exp(z l) (exp(z) - 1) / (exp(z L) - 1) = exp(-z (L - 1 - l)) (exp(-z) - 1) / (exp(-z L) - 1), so that no
  // power overflows.
  at::Tensor taps(const at::Tensor& x) const {
    const auto m = modes();
    const auto grows = at::real(m.z) > 0;
    const auto z = at::where(grows, -m.z, m.z);
    const auto a = at::exp(z);
    const auto sum = (at::exp(z * static_cast<double>(o_.length)) - 1);
    const auto size = at::real(sum * at::conj(sum)) + kSmallestSum;
    const auto w = 2 * complex_of(c_) * (a - 1) / m.lambda * at::conj(sum) / size;
    const auto none = at::zeros_like(w);
    const auto part = [&](const at::Tensor& weight) {
      return ops::exponential_sum(a, weight.unsqueeze(0), o_.length)[0];
    };
    return (part(at::where(grows, none, w)) + part(at::where(grows, w, none)).flip(-1))
        .to(accumulate_type(x));
  }

  at::Tensor finish(const at::Tensor& y, const at::Tensor& x) const {
    return out_(y + skip_->value.to(y.scalar_type()) * x, x);
  }

  Options o_;
  bool softmax_;
  int64_t width_;
  SsmOutput out_;
  std::shared_ptr<Parameter> log_dt_, rate_, frequency_, c_, skip_;
};
const Register<Dss> register_dss{
    "dss",
    "diagonal state space whose input map is part of the output map (DSS); use it as s4d "
    "with fewer parameters, or with kernel softmax for rows of one known length"};

}  // namespace
}  // namespace weft
