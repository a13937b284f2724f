// The moving average of Mega: some damped exponential averages of every channel. Ma et al. 2022, arXiv:2209.10655.
//   p = sigmoid(delta), q = 1 - p sigmoid(alpha);  h_t = q h_{t-1} + p beta x_t
//   m_t = sum_n gamma_n h_t,n / sqrt(N) + omega x_t;  y = GLU(W GELU(m))
// Mega puts a gated attention behind it; here it is a layer of its own: put attention in another.
//
// E = D channels of N real states. State: h [B, E, N] fp32.
#include <cmath>

#include "nn/mixers/ssm.h"

namespace weft {
namespace {

class MegaEma final : public SequenceMixer {
 public:
  struct Options {
    int64_t states = 16;
    std::string activation = "glu";
    void fields(Fields& f) {
      f("states", states, "N, averages of a channel", at_least(1));
      f("activation", activation, "what follows the averages", ssm_activation());
    }
  };

  MegaEma(const Options& options, const Site& site)
      : o_(options), width_(site.width), out_(options.activation, width_, site) {
    add_child("output", out_);
    const std::vector<int64_t> sizes{width_, o_.states};
    delta_ = parameter("delta", sizes, init::normal(0.2), ssm_rules(1));
    alpha_ = parameter("alpha", sizes, init::normal(0.2), ssm_rules(1));
    beta_ = parameter(
        "beta", sizes,
        [](at::Tensor& value, at::Generator& random) {
          value.normal_(0, 0.02, random);
          value.add_(1 - 2 * at::arange(value.size(1)).remainder(2));  // 1 and -1 in turns
        },
        ssm_rules(1));
    gamma_ = parameter("gamma", sizes, init::normal(1), ssm_rules(1));
    omega_ = vector_parameter("omega", {width_}, init::normal(1));
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    return out_(run_bank(bank(), x, state, context), x);
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context&) override {
    return out_(step_bank(bank(), x, state), x);
  }
  Summary summary(const at::Tensor& x, const State&, const Context& context) override {
    Summary summary;
    summary.maps["h"] = bank_map(bank(), x, context);
    return summary;
  }
  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("h", bank_state(batch, width_, o_.states, false, options));
    return state;
  }
  double op_flops(int64_t) const override { return static_cast<double>(width_ * o_.states * 5); }
  std::vector<std::string> ops() const override { return {"conv"}; }

 private:
  DiagonalBank bank() const {
    const auto p = at::sigmoid(delta_->value.to(at::kDouble));
    const auto q = 1 - p * at::sigmoid(alpha_->value.to(at::kDouble));
    return {q, p * beta_->value.to(at::kDouble),
            gamma_->value.to(at::kDouble) / std::sqrt(static_cast<double>(o_.states)), omega_->value};
  }

  Options o_;
  int64_t width_;
  SsmOutput out_;
  std::shared_ptr<Parameter> delta_, alpha_, beta_, gamma_, omega_;
};
const Register<MegaEma> register_mega_ema{
    "mega_ema", "damped moving averages of every channel (Mega's EMA); local smoothing beside attention"};

}  // namespace
}  // namespace weft
