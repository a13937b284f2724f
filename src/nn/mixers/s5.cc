// S5: one diagonal state space for all channels, run as a scan. Smith et al. 2022, arXiv:2208.04933.
//   a = exp(dt lambda), b = (a - 1) / lambda B            zoh, a step size for every state
//   h_t = a h_{t-1} + b x_t;  m_t = 2 Re(C h_t) + D x_t;  y_t = GLU(W GELU(m_t))
// At the start lambda are the eigenvalues of `blocks` HiPPO-LegS matrices, B and C are random in their coordinates.
//
// P states, P / 2 complex ones kept. State: h [B, P / 2, 2, 1] fp32, real and imaginary parts.
#include <cmath>

#include "base/error.h"
#include "nn/mixers/hippo.h"
#include "nn/mixers/mimo.h"
#include "nn/mixers/ssm.h"

namespace weft {
namespace {

class S5 final : public SequenceMixer {
 public:
  struct Options {
    int64_t states = 0, blocks = 1;
    bool clip_eigenvalues = false;
    std::string rule = "zoh", activation = "full_glu";
    double dt_min = 1e-3, dt_max = 0.1, lr_scale = 0.1;
    void fields(Fields& f) {
      f("states", states, "P, states; half as many complex ones are kept; 0 means the model width",
        at_least(0));
      f("blocks", blocks, "HiPPO matrices on the diagonal at the start", at_least(1));
      f("clip_eigenvalues", clip_eigenvalues,
        "keep real parts at or below -1e-4, so that states cannot grow");
      f("discretization", rule, "from the continuous system to steps", one_of({"zoh", "bilinear"}));
      f("dt_min", dt_min, "smallest step size at the start", above(0));
      f("dt_max", dt_max, "largest step size at the start", above(0));
      f("ssm_lr_scale", lr_scale, "rate of step sizes, state matrix and input map relative to the rest",
        above(0));
      f("activation", activation, "what follows the state space", ssm_activation());
    }
  };

  S5(const Options& options, const Site& site)
      : o_(options), width_(site.width), out_(o_.activation, width_, site) {
    if (o_.states == 0) o_.states = width_;
    require(o_.states % (2 * o_.blocks) == 0, "{}: {} blocks of conjugate pairs do not make up {} states",
            site.where, o_.blocks, o_.states);
    require(o_.dt_min <= o_.dt_max, "{}: dt_min {} is larger than dt_max {}", site.where, o_.dt_min,
            o_.dt_max);
    const auto start = hippo::blocks_of_legs(o_.states, o_.blocks);
    const int64_t pairs = o_.states / 2, states = o_.states;
    const auto rules = ssm_rules(o_.lr_scale);
    log_dt_ = parameter("log_dt", {pairs}, init_log_step(o_.dt_min, o_.dt_max), rules);
    lambda_ = parameter("A", {pairs, 2}, init_rows(start.lambda), rules);
    // Random real B of P x D with variance 1 / D and complex C of D x P with variance 1 / P, in the coordinates V.
    b_ = parameter(
        "B", {pairs, width_, 2},
        [v = start.v, states](at::Tensor& value, at::Generator& random) {
          const auto b = at::empty({states, value.size(1)}, at::kFloat)
                             .normal_(0, 1 / std::sqrt(static_cast<double>(value.size(1))), random);
          value.copy_(at::view_as_real(at::matmul(at::conj(v.t()), b.to(v.scalar_type())).contiguous()));
        },
        rules);
    c_ = parameter(
        "C", {width_, pairs, 2},
        [v = start.v, states](at::Tensor& value, at::Generator& random) {
          const auto c = at::empty({value.size(0), states, 2}, at::kFloat)
                             .normal_(0, std::sqrt(0.5 / static_cast<double>(states)), random);
          value.copy_(
              at::view_as_real(at::matmul(at::view_as_complex(c).to(v.scalar_type()), v).contiguous()));
        },
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
    return mimo_state(batch, o_.states / 2, options);
  }
  double op_flops(int64_t) const override {
    return static_cast<double>(4 * width_ * o_.states + 4 * o_.states);
  }
  std::vector<std::string> ops() const override { return {"scan"}; }

 private:
  MimoSystem system() const {
    auto lambda = complex_of(lambda_);
    if (o_.clip_eigenvalues)
      lambda = at::complex(at::real(lambda).clamp_max(-1e-4), at::imag(lambda).contiguous());
    const auto dt = at::exp(log_dt_->value.to(at::kDouble)).unsqueeze(-1);
    const auto made = discretise(lambda.unsqueeze(-1), complex_of(b_), dt, o_.rule);
    return {made.a.squeeze(-1), made.b, 2 * complex_of(c_), skip_->value};
  }

  Options o_;
  int64_t width_;
  SsmOutput out_;
  std::shared_ptr<Parameter> log_dt_, lambda_, b_, c_, skip_;
};
const Register<S5> register_s5{
    "s5",
    "one diagonal state space shared by all channels, as a scan (S5); use it for long "
    "signals and for reinforcement learning, where episodes reset the state"};

}  // namespace
}  // namespace weft
