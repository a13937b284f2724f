// LRU: a complex diagonal recurrence without a continuous system behind it. Orvieto et al. 2023, arXiv:2303.06349.
//   lambda = exp(-exp(nu_log) + i exp(theta_log)),   gamma = exp(gamma_log)
//   h_t = lambda h_{t-1} + gamma (B x_t);   m_t = Re(C h_t) + D x_t;   y_t = GLU(W GELU(m_t))
// At the start |lambda|^2 is uniform between r_min^2 and r_max^2, and gamma = sqrt(1 - |lambda|^2), so that white input
// gives states of the same size whatever their memory.
//
// P complex states, all kept. State: h [B, P, 2, 1] fp32, real and imaginary parts.
#include <cmath>

#include "base/error.h"
#include "nn/mixers/mimo.h"
#include "nn/mixers/ssm.h"

namespace weft {
namespace {

class Lru final : public SequenceMixer {
 public:
  struct Options {
    int64_t states = 0;
    double r_min = 0, r_max = 1, max_phase = 6.28, lr_scale = 0.5;
    std::string activation = "full_glu";
    void fields(Fields& f) {
      f("states", states, "P, complex states; 0 means the model width", at_least(0));
      f("r_min", r_min, "smallest |lambda| at the start", at_least(0), below(1));
      f("r_max", r_max, "largest |lambda| at the start", above(0), at_most(1));
      f("max_phase", max_phase, "largest angle of lambda at the start, radians", above(0));
      f("ssm_lr_scale", lr_scale, "rate of lambda, gamma and B relative to the rest", above(0));
      f("activation", activation, "what follows the recurrence", ssm_activation());
    }
  };

  Lru(const Options& options, const Site& site)
      : o_(options), width_(site.width), out_(o_.activation, width_, site) {
    if (o_.states == 0) o_.states = width_;
    require(o_.r_min < o_.r_max, "{}: r_min {} must be below r_max {}", site.where, o_.r_min, o_.r_max);
    const auto rules = ssm_rules(o_.lr_scale);
    const double low = o_.r_min * o_.r_min, high = o_.r_max * o_.r_max, phase = o_.max_phase;
    nu_ = parameter(
        "nu_log", {o_.states},
        [low, high](at::Tensor& value, at::Generator& random) {
          const auto squared = value.uniform_(0, 1, random).mul_(high - low).add_(low).clamp(1e-8, 1 - 1e-7);
          value.copy_(at::log(-0.5 * at::log(squared)));
        },
        rules);
    theta_ = parameter(
        "theta_log", {o_.states},
        [phase](at::Tensor& value, at::Generator& random) {
          value.uniform_(0, 1, random).clamp_min_(1e-6).mul_(phase).log_();
        },
        rules);
    gamma_ = parameter(
        "gamma_log", {o_.states},
        [nu = nu_](at::Tensor& value, at::Generator&) {  // made after nu_log, so filled after it
          value.copy_(0.5 * at::log1p(-at::exp(-2 * at::exp(nu->value.to(at::kDouble)))));
        },
        rules);
    b_ = parameter("B", {o_.states, width_, 2}, init::normal(std::sqrt(0.5 / static_cast<double>(width_))),
                   rules);
    c_ = parameter("C", {width_, o_.states, 2}, init::normal(1 / std::sqrt(static_cast<double>(o_.states))),
                   ssm_rules(1));
    skip_ = vector_parameter("D", {width_}, init::normal(1));
    add_child("output", out_);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    return out_(run_mimo(system(), x, state, context), x);
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context&) override {
    return out_(step_mimo(system(), x, state), x);
  }
  Summary summary(const at::Tensor& x, const State&, const Context& context) override {
    return mimo_summary(system(), x, context);
  }
  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    return mimo_state(batch, o_.states, options);
  }
  double op_flops(int64_t) const override {
    return static_cast<double>(8 * width_ * o_.states + 8 * o_.states);
  }
  std::vector<std::string> ops() const override { return {"scan"}; }

 private:
  MimoSystem system() const {
    const auto radius = at::exp(-at::exp(nu_->value.to(at::kDouble)));
    const auto lambda = at::polar(radius, at::exp(theta_->value.to(at::kDouble)));
    const auto gamma = at::exp(gamma_->value.to(at::kDouble)).unsqueeze(-1);
    return {lambda, gamma * complex_of(b_), complex_of(c_), skip_->value};
  }

  Options o_;
  int64_t width_;
  SsmOutput out_;
  std::shared_ptr<Parameter> nu_, theta_, gamma_, b_, c_, skip_;
};
const Register<Lru> register_lru{
    "lru",
    "complex diagonal recurrence with a stable parametrisation (LRU); use it as the "
    "plainest linear recurrence for long memory"};

}  // namespace
}  // namespace weft
