// S4D: a diagonal linear time-invariant state space for every channel. Gu et al. 2022, arXiv:2206.11893.
//   lambda = -exp(A_re_log) + i A_im;  a = exp(dt lambda), b = (a - 1) / lambda B (zoh; or the bilinear rule)
//   h_t = a h_{t-1} + b x_t;  m_t = 2 Re(C . h_t) + D x_t;  y_t = GLU(W GELU(m_t))
//
// E = D channels of N states, N / 2 complex ones kept. State: h [B, E, N / 2, 2, 1] fp32, real and imaginary parts.
#include "nn/mixers/ssm.h"

namespace weft {
namespace {

class S4d final : public SequenceMixer {
 public:
  struct Options {
    DiagonalParameters::Options ssm;
    std::string activation = "glu";
    void fields(Fields& f) {
      ssm.fields(f);
      f("activation", activation, "what follows the state space", ssm_activation());
    }
  };

  S4d(const Options& options, const Site& site)
      : width_(site.width), ssm_(options.ssm, width_, site.where), out_(options.activation, width_, site) {
    add_child("ssm", ssm_);
    add_child("output", out_);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    return out_(run_bank(ssm_.bank(), x, state, context), x);
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context&) override {
    return out_(step_bank(ssm_.bank(), x, state), x);
  }
  Summary summary(const at::Tensor& x, const State&, const Context& context) override {
    Summary summary;
    summary.maps["h"] = bank_map(ssm_.bank(), x, context);
    return summary;
  }
  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("h", bank_state(batch, width_, ssm_.states(), true, options));
    return state;
  }
  double op_flops(int64_t) const override { return static_cast<double>(width_ * ssm_.states() * 12); }
  std::vector<std::string> ops() const override { return {"conv"}; }

 private:
  int64_t width_;
  DiagonalParameters ssm_;
  SsmOutput out_;
};
const Register<S4d> register_s4d{
    "s4d",
    "diagonal state space trained as a convolution (S4D); use it for long smooth signals: "
    "audio, sensors, pixels"};

}  // namespace
}  // namespace weft
