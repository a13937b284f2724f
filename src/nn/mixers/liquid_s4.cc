// Liquid-S4: S4D that also reads products of neighbouring inputs. Hasani et al. 2022, arXiv:2209.12951.
//   x' = (A + B u) x + B u, expanded in powers of the input, up to products of P neighbours:
//   v_t^(p) = x_t x_{t-1} ... x_{t-p+1};   h_t = a h_{t-1} + sum_{p=1}^P b^p v_t^(p)       a, b as in s4d, b^p elementwise
//   m_t = 2 Re(C . h_t) + D x_t;   y_t = GLU(W GELU(m_t))
// so that the kernel of degree p is K_p[l] = 2 Re(C . a^l b^p), a convolution; all degrees meet in one state.
//
// E = D channels of N states, N / 2 complex ones kept. State: h [B, E, N / 2, 2, 1] fp32, real and imaginary parts;
// past [B, P - 1, E], the last inputs in the activation type.
#include "nn/mixers/ssm.h"
#include "ops/shape.h"

namespace weft {
namespace {

class LiquidS4 final : public SequenceMixer {
 public:
  struct Options {
    int64_t degree = 2;
    DiagonalParameters::Options ssm;
    std::string activation = "glu";
    void fields(Fields& f) {
      f("degree", degree, "P, largest number of neighbouring inputs multiplied; 1 is s4d", at_least(1),
        at_most(4));
      ssm.fields(f);
      f("activation", activation, "what follows the state space", ssm_activation());
    }
  };

  LiquidS4(const Options& options, const Site& site)
      : width_(site.width),
        degree_(options.degree),
        ssm_(options.ssm, width_, site.where),
        out_(options.activation, width_, site) {
    add_child("ssm", ssm_);
    add_child("output", out_);
  }

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override {
    const auto bank = ssm_.bank();
    const auto in = products(x, state, context);
    auto y = run_bank(bank, x, state, context);
    auto h = state.at("h");
    for (const auto& [b, v] : terms(bank, in)) {
      const auto more = ops::diagonal_ssm({.u = v,
                                           .a = bank.a,
                                           .b = b,
                                           .c = bank.c,
                                           .starts = context.starts,
                                           .keep_state = context.keep_state});
      y = y + more.y;
      if (more.state.defined()) h = h + to_state(more.state);
    }
    state.set("h", h);
    if (degree_ > 1) state.set("past", in.past);
    return out_(y, x);
  }

  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override {
    if (context.starts.defined()) return run(x, state, context);
    const auto bank = ssm_.bank();
    const auto in = products(x, state, context);
    auto y = step_bank(bank, x, state);  // [B, 1, E]
    for (const auto& [b, v] : terms(bank, in)) {
      const auto more = b * v.transpose(1, 2);  // [B, E, N / 2] fp64
      state.writable("h").add_(to_state(more));
      y = y + at::real((bank.c * more).sum(-1)).unsqueeze(1).to(y.scalar_type());
    }
    if (degree_ > 1) state.set("past", in.past);
    return out_(y, x);
  }

  Summary summary(const at::Tensor& x, const State& state, const Context& context) override {
    const auto bank = ssm_.bank();
    const auto in = products(x, state, context);
    Summary summary;
    auto& map = summary.maps["h"] = bank_map(bank, x, context);
    for (const auto& [b, v] : terms(bank, in)) {
      const auto more =
          ops::diagonal_ssm({.u = v, .a = bank.a, .b = b, .c = bank.c, .starts = context.starts});
      map.offset = map.offset + to_state(more.state);
    }
    if (degree_ > 1) summary.rest.set("past", in.past);
    return summary;
  }

  State initial_state(int64_t batch, const at::TensorOptions& options) const override {
    State state;
    state.set("h", bank_state(batch, width_, ssm_.states(), true, options));
    if (degree_ > 1) state.set("past", at::zeros({batch, degree_ - 1, width_}, options));
    return state;
  }
  double op_flops(int64_t) const override {
    return static_cast<double>(width_ * ssm_.states() * 12 * degree_);
  }
  std::vector<std::string> ops() const override { return {"conv"}; }

 private:
  struct Products {
    std::vector<at::Tensor> v;  // of two inputs, three, ...: [B, T, E] fp32 or fp64
    at::Tensor past;
  };
  // No product reaches into the document before.
  Products products(const at::Tensor& x, const State& state, const Context& context) const {
    if (degree_ == 1) return {};
    const int64_t before = degree_ - 1, tokens = x.size(1);
    const auto inputs = at::cat({state.at("past").to(x.scalar_type()), x}, 1);  // [B, P - 1 + T, E]
    const auto wide = inputs.to(accumulate_type(x));
    at::Tensor document;  // [B, P - 1 + T] number of the document
    if (context.starts.defined())
      document = at::constant_pad_nd(context.starts.to(at::kLong), {before, 0}).cumsum(1);
    const auto within = [&](const at::Tensor& values, const at::Tensor& of, const at::Tensor& and_of) {
      return document.defined() ? values * (of == and_of).unsqueeze(-1).to(values.scalar_type()) : values;
    };
    const auto window = [&](const at::Tensor& all, int64_t back) {
      return all.defined() ? all.slice(1, before - back, before - back + tokens) : all;
    };
    Products result;
    auto product = window(wide, 0);
    for (int64_t back = 1; back < degree_; ++back) {
      product = product * within(window(wide, back), window(document, back), window(document, 0));
      result.v.push_back(product);
    }
    const auto last = document.defined() ? document.slice(1, -1) : document;
    result.past =
        within(inputs.slice(1, tokens), document.defined() ? document.slice(1, tokens) : document, last);
    return result;
  }

  // Input map and input of every degree from 2.
  std::vector<std::pair<at::Tensor, at::Tensor>> terms(const DiagonalBank& bank, const Products& in) const {
    std::vector<std::pair<at::Tensor, at::Tensor>> result;
    auto b = bank.b;
    for (const auto& v : in.v) result.emplace_back(b = b * bank.b, v);
    return result;
  }

  int64_t width_, degree_;
  DiagonalParameters ssm_;
  SsmOutput out_;
};
const Register<LiquidS4> register_liquid_s4{
    "liquid_s4",
    "s4d that also reads products of neighbouring inputs (Liquid-S4); use it for long signals whose local "
    "correlations matter"};

}  // namespace
}  // namespace weft
