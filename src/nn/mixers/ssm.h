// What the state-space mixers share: rules of their parameters, states of complex numbers, the diagonal bank, the maps
// around it, and the output of a block.
#pragma once

#include "nn/mixer.h"
#include "ops/conv/ssm_kernels.h"

namespace weft {

// Step sizes, state matrices and input maps: no weight decay, a rate of their own, always fp32. Gu et al. 2022,
// arXiv:2206.11893: training is unstable when they move as fast as the rest.
ParameterRules ssm_rules(double lr_scale);

// log of a step size, log-uniform in [low, high].
Init init_log_step(double low, double high);
// Complex numbers as real pairs, [..., 2]: real and imaginary parts normal with this std.
Init init_complex_normal(double std);
// Every row of a parameter [rows, ...] set to `value` [...], complex ones as real pairs.
Init init_rows(const at::Tensor& value);

// Complex fp64 numbers of a parameter that holds real pairs [..., 2].
at::Tensor complex_of(const std::shared_ptr<Parameter>& pairs);

// A state of complex numbers is kept as [B, ..., 2, 1] real numbers, so that files, gradients and affine maps (a 2 x 2
// matrix for each number) need no complex types.
at::Tensor from_state(const at::Tensor& pairs);  // -> [B, ...] complex
at::Tensor to_state(const at::Tensor& numbers);  // [B, ...] complex ->
// The map of such a state that multiplies by `factor` [...] and adds `offset` [B, ...]; rows where a document began forget.
AffineMap complex_map(const at::Tensor& factor, const at::Tensor& offset, const at::Tensor& starts);
// The same for a state of real numbers [B, ...].
AffineMap real_map(const at::Tensor& factor, const at::Tensor& offset, const at::Tensor& starts);
// a^tokens, elementwise, fp64.
at::Tensor to_power(const at::Tensor& a, int64_t tokens);

// A discrete diagonal system for E channels: h = a h + b u, y = Re(c . h) + skip u. All [E, N], real or complex fp64;
// skip [E], undefined: none.
struct DiagonalBank {
  at::Tensor a, b, c, skip;
};
// Runs u [B, T, E] and moves the state on, the entry `name` of `state`. Returns [B, T, E] fp32 or fp64.
at::Tensor run_bank(const DiagonalBank& bank, const at::Tensor& u, State& state, const Context& context,
                    const std::string& name = "h");
// One token, in place.
at::Tensor step_bank(const DiagonalBank& bank, const at::Tensor& u, State& state,
                     const std::string& name = "h");
// The map of the state over u.
AffineMap bank_map(const DiagonalBank& bank, const at::Tensor& u, const Context& context);
at::Tensor bank_state(int64_t batch, int64_t channels, int64_t states, bool complex,
                      const at::TensorOptions& options);

// (a, b) of x' = lambda x + b u over steps dt, lambda and b [E, N], dt [E, 1] or [E, N]: `rule` "zoh" or "bilinear".
struct DiscreteInputs {
  at::Tensor a, b;
};
DiscreteInputs discretise(const at::Tensor& lambda, const at::Tensor& b, const at::Tensor& dt,
                          const std::string& rule);

// Parameters of a diagonal system, S4D (arXiv:2206.11893): lambda = -exp(A_re_log) + i A_im and B, shared by E / copies
// channels each, C and a skip for every channel.
class DiagonalParameters final : public Module {
 public:
  struct Options {
    int64_t states = 64, copies = 1;
    std::string init = "legs", rule = "zoh";
    double dt_min = 1e-3, dt_max = 0.1, lr_scale = 0.1;
    void fields(Fields& f);
  };
  // `where` names the place in messages.
  DiagonalParameters(const Options& options, int64_t channels, const std::string& where);
  DiagonalBank bank() const;
  int64_t states() const { return o_.states / 2; }  // complex ones kept for a channel

 private:
  Options o_;
  int64_t channels_;
  std::shared_ptr<Parameter> log_dt_, rate_, frequency_, b_, c_, skip_;
};

// What a block does with the model's output y [B, T, E], for D wide x:
//   glu, full_glu  a * sigmoid(g),  a, g = W GELU(y)       half_glu  GELU(y) * sigmoid(W GELU(y))
//   gelu           W GELU(y)                               none      y as it is
class SsmOutput final : public Module {
 public:
  SsmOutput(const std::string& activation, int64_t channels, const Site& site);
  at::Tensor operator()(const at::Tensor& y, const at::Tensor& x) const;  // in the type of x

 private:
  std::string activation_;
  Linear out_, gate_;
};
Check ssm_activation();  // the names above

}  // namespace weft
