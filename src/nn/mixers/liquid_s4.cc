// Liquid-S4: a diagonal state space that also takes products of neighbouring inputs. Hasani et al. 2022,
// arXiv:2209.12951.
//   u^1_t = x_t, u^p_t = x_t u^{p-1}_{t-1}                     products of the last p inputs of the document
//   h^p_t = a h^p_{t-1} + b^p u^p_t (b to the power p, elementwise);  m_t = 2 Re sum_p C . h^p_t + D x_t
//   y_t = GLU(W GELU(m_t))
// The term of the state space linearised in its input; the reference code applies it pointwise and mirrored in time instead.
//
// E = D channels of N states, N / 2 complex ones kept; P degree.
// State: h1 .. hP [B, E, N / 2, 2, 1] fp32; u1 .. u{P-1} [B, 1, E] in the activation type, the last products.
#include "nn/mixers/ssm.h"

namespace weft {
namespace {

class LiquidS4 final : public SequenceMixer {
 public:
  struct Options {
    int64_t degree = 2;
    DiagonalParameters::Options ssm;
    std::string activation = "glu";
    void fields(Fields& f) {
      f("degree", degree, "P, inputs in the longest product; 1: s4d", at_least(1), at_most(8));
      ssm.fields(f);
      f("activation", activation, "what follows the state space", ssm_activation());
    }
  };

  LiquidS4(const Options& options, const Site& site)
      : o_(options),
        width_(site.width),
        ssm_(options.ssm, width_, site.where),
        out_(options.activation, width_, site) {
    add_child("ssm", ssm_);
    add_child("output", out_);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    if (x.size(1) == 0) return out_(x, x);
    return mix(x, state, context.starts,
               [&](const DiagonalBank& bank, const at::Tensor& u, const std::string& name) {
                 return run_bank(bank, u, state, context, name);
               });
  }
  at::Tensor step(const at::Tensor& x, State& state, const Context&) override {
    return mix(x, state, {}, [&](const DiagonalBank& bank, const at::Tensor& u, const std::string& name) {
      return step_bank(bank, u, state, name);
    });
  }
  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    for (int64_t p = 1; p <= o_.degree; ++p) {
      state.set("h" + std::to_string(p), bank_state(batch, width_, ssm_.states(), true, options));
      if (p < o_.degree) state.set("u" + std::to_string(p), at::zeros({batch, 1, width_}, options));
    }
    return state;
  }
  double op_flops(int64_t) const override {
    return static_cast<double>(o_.degree * width_ * ssm_.states() * 12);
  }
  std::vector<std::string> ops() const override { return {"conv"}; }

 private:
  template <class Run>
  at::Tensor mix(const at::Tensor& x, State& state, const at::Tensor& starts, const Run& run) const {
    auto bank = ssm_.bank();
    const auto b = bank.b;
    auto product = x;
    auto y = run(bank, x, "h1");
    bank.skip = at::Tensor();
    for (int64_t p = 2; p <= o_.degree; ++p) {
      const auto name = "u" + std::to_string(p - 1);
      auto before = at::cat({state.at(name).to(x.scalar_type()), product.slice(1, 0, -1)}, 1);
      if (starts.defined()) before = at::where(starts.unsqueeze(-1), at::zeros_like(before), before);
      state.set(name, product.slice(1, -1));
      product = x * before;
      bank.b = bank.b * b;
      y = y + run(bank, product, "h" + std::to_string(p));
    }
    return out_(y, x);
  }

  Options o_;
  int64_t width_;
  DiagonalParameters ssm_;
  SsmOutput out_;
};
const Register<LiquidS4> register_liquid_s4{
    "liquid_s4",
    "diagonal state space that also takes products of neighbouring inputs (Liquid-S4); for signals whose "
    "correlations matter"};

}  // namespace
}  // namespace weft
