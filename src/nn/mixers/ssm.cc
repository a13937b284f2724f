#include "nn/mixers/ssm.h"

#include <cmath>

#include "base/error.h"
#include "nn/mixers/hippo.h"
#include "nn/mixers/step_size.h"
#include "ops/shape.h"

namespace weft {
namespace {

at::Tensor typed(const at::Tensor& numbers, const at::Tensor& state) {
  const auto real = c10::toRealValueType(state.scalar_type());
  return numbers.to(numbers.is_complex() ? c10::toComplexType(real) : real);
}

// 1 for rows that no document begins in, shaped to multiply a tensor of `dims` dimensions.
at::Tensor remembering(const at::Tensor& starts, int64_t dims, at::ScalarType type) {
  std::vector<int64_t> shape(static_cast<size_t>(dims), 1);
  shape[0] = -1;
  return starts.any(1).logical_not().view(shape).to(type);
}

}  // namespace

ParameterRules ssm_rules(double lr_scale) {
  return {
      .role = ParameterRules::Role::vector, .lr_scale = lr_scale, .weight_decay = false, .keep_float = true};
}

Init init_log_step(double low, double high) { return init::uniform(std::log(low), std::log(high)); }

Init init_complex_normal(double std) { return init::normal(std); }

Init init_rows(const at::Tensor& value) {
  return [value](at::Tensor& out, at::Generator&) {
    out.copy_((value.is_complex() ? at::view_as_real(value.contiguous()) : value).expand_as(out));
  };
}

at::Tensor complex_of(const std::shared_ptr<Parameter>& pairs) {
  const auto parts = pairs->value.to(at::kDouble).unbind(-1);
  return at::complex(parts[0].contiguous(), parts[1].contiguous());
}

at::Tensor from_state(const at::Tensor& pairs) { return at::view_as_complex(pairs.squeeze(-1).contiguous()); }

at::Tensor to_state(const at::Tensor& numbers) {
  return at::view_as_real(numbers.contiguous()).contiguous().unsqueeze(-1);
}

at::Tensor to_power(const at::Tensor& a, int64_t tokens) {
  const auto wide = a.to(a.is_complex() ? at::kComplexDouble : at::kDouble);
  return tokens == 0 ? at::ones_like(wide) : at::pow(wide, tokens);
}

AffineMap complex_map(const at::Tensor& factor, const at::Tensor& offset, const at::Tensor& starts) {
  const auto number = typed(factor, offset).expand_as(offset[0]).unsqueeze(0);  // [1, ...]
  const auto re = at::real(number), im = at::imag(number);
  auto matrix = at::stack({re, -im, im, re}, -1).unflatten(-1, {2, 2});  // [1, ..., 2, 2]
  if (starts.defined()) matrix = matrix * remembering(starts, matrix.dim(), matrix.scalar_type());
  return {matrix, to_state(offset), true};
}

AffineMap real_map(const at::Tensor& factor, const at::Tensor& offset, const at::Tensor& starts) {
  auto number = typed(factor, offset).expand_as(offset[0]).unsqueeze(0);
  if (starts.defined()) number = number * remembering(starts, offset.dim(), number.scalar_type());
  return {number, offset, false};
}

at::Tensor run_bank(const DiagonalBank& bank, const at::Tensor& u, State& state, const Context& context,
                    const std::string& name) {
  const bool complex = bank.a.is_complex();
  const auto before = state.at(name);
  const auto result = ops::diagonal_ssm({.u = u,
                                         .a = bank.a,
                                         .b = bank.b,
                                         .c = bank.c,
                                         .initial = complex ? from_state(before) : before,
                                         .starts = context.starts,
                                         .keep_state = context.keep_state});
  if (result.state.defined()) state.set(name, complex ? to_state(result.state) : result.state);
  return bank.skip.defined() ? result.y + bank.skip.to(result.y.scalar_type()) * u : result.y;
}

at::Tensor step_bank(const DiagonalBank& bank, const at::Tensor& u, State& state, const std::string& name) {
  auto& stored = state.writable(name);
  const auto h = bank.a.is_complex() ? at::view_as_complex(stored.squeeze(-1)) : stored;  // [B, E, N]
  const auto wide = u.to(c10::toRealValueType(h.scalar_type()));
  h.mul_(typed(bank.a, h)).add_(typed(bank.b, h) * wide.transpose(1, 2));
  const auto product = (typed(bank.c, h) * h).sum(-1).unsqueeze(1);  // [B, 1, E]
  const auto y = product.is_complex() ? at::real(product) : product;
  return bank.skip.defined() ? y + bank.skip.to(y.scalar_type()) * wide : y;
}

AffineMap bank_map(const DiagonalBank& bank, const at::Tensor& u, const Context& context) {
  const auto after =
      ops::diagonal_ssm({.u = u, .a = bank.a, .b = bank.b, .c = bank.c, .starts = context.starts}).state;
  const auto factor = to_power(bank.a, u.size(1));
  return bank.a.is_complex() ? complex_map(factor, after, context.starts)
                             : real_map(factor, after, context.starts);
}

at::Tensor bank_state(int64_t batch, int64_t channels, int64_t states, bool complex,
                      const at::TensorOptions& options) {
  const auto real = state_options(options);
  return complex ? at::zeros({batch, channels, states, 2, 1}, real)
                 : at::zeros({batch, channels, states}, real);
}

DiscreteInputs discretise(const at::Tensor& lambda, const at::Tensor& b, const at::Tensor& dt,
                          const std::string& rule) {
  const auto z = lambda * dt;
  if (rule == "zoh") return {at::exp(z), (at::exp(z) - 1) / lambda * b};
  invariant(rule == "bilinear", "no discretisation is called {}", rule);
  return {(1 + z / 2) / (1 - z / 2), dt * b / (1 - z / 2)};
}

void DiagonalParameters::Options::fields(Fields& f) {
  f("states", states, "N, states of a channel; half as many complex ones are kept", at_least(2));
  f("copies", copies, "state matrices, each shared by width / copies channels", at_least(1));
  f("init", init, "state matrix at the start", one_of({"legs", "lin", "inv", "real", "random"}));
  f("discretization", rule, "from the continuous system to steps", one_of({"zoh", "bilinear"}));
  f("dt_min", dt_min, "smallest step size at the start", above(0));
  f("dt_max", dt_max, "largest step size at the start", above(0));
  f("ssm_lr_scale", lr_scale, "rate of step sizes, state matrices and input maps relative to the rest",
    above(0));
}

DiagonalParameters::DiagonalParameters(const Options& options, int64_t channels, const std::string& where)
    : o_(options), channels_(channels) {
  require(o_.states % 2 == 0, "{}: states {} must be even, conjugate pairs are kept as one", where,
          o_.states);
  require(channels % o_.copies == 0, "{}: copies {} does not divide the {} channels", where, o_.copies,
          channels);
  require(o_.dt_min <= o_.dt_max, "{}: dt_min {} is larger than dt_max {}", where, o_.dt_min, o_.dt_max);
  const int64_t pairs = o_.states / 2;
  const auto rules = ssm_rules(o_.lr_scale);
  // Equal copies of a fixed matrix; for "random" each parameter draws its own part.
  const auto fixed = [&]() -> hippo::Diagonal {
    if (o_.init == "random") return {};
    at::Generator unused;
    return hippo::diagonal(o_.init, o_.states, unused);
  }();
  const auto ones = at::complex(at::ones({pairs}, at::kDouble), at::zeros({pairs}, at::kDouble));
  log_dt_ = parameter("log_dt", {channels}, init_log_step(o_.dt_min, o_.dt_max), rules);
  rate_ = parameter("A_re_log", {o_.copies, pairs},
                    fixed.lambda.defined() ? init_rows(at::log(-at::real(fixed.lambda))) : init::normal(1),
                    rules);
  frequency_ = parameter("A_im", {o_.copies, pairs},
                         fixed.lambda.defined() ? init_rows(at::imag(fixed.lambda).contiguous())
                                                : init::normal(static_cast<double>(pairs)),
                         rules);
  b_ = parameter("B", {o_.copies, pairs, 2}, init_rows(fixed.b.defined() ? fixed.b : ones), rules);
  c_ = parameter("C", {channels, pairs, 2}, init_complex_normal(std::sqrt(0.5)), ssm_rules(1));
  skip_ = vector_parameter("D", {channels}, init::normal(1));
}

DiagonalBank DiagonalParameters::bank() const {
  const auto lambda = at::complex(-at::exp(rate_->value.to(at::kDouble)), frequency_->value.to(at::kDouble));
  const int64_t sharing = channels_ / o_.copies;
  const auto dt = at::exp(log_dt_->value.to(at::kDouble)).unsqueeze(-1);
  const auto made = discretise(lambda.repeat_interleave(sharing, 0),
                               complex_of(b_).repeat_interleave(sharing, 0), dt, o_.rule);
  return {made.a, made.b, 2 * complex_of(c_), skip_->value};
}

SsmOutput::SsmOutput(const std::string& activation, int64_t channels, const Site& site)
    : activation_(activation) {
  if (activation == "none") {
    require(channels == site.width, "{}: without an output activation, {} channels must be the width {}",
            site.where, channels, site.width);
    return;
  }
  const bool half = activation == "half_glu";
  if (half)
    require(channels == site.width, "{}: half_glu keeps {} channels, which must be the width {}", site.where,
            channels, site.width);
  else
    out_ = linear("out", channels, site.width, {.bias = true, .scale = site.residual_init()});
  if (activation != "gelu") gate_ = linear("gate", channels, site.width, {.bias = true});
}

at::Tensor SsmOutput::operator()(const at::Tensor& y, const at::Tensor& x) const {
  if (activation_ == "none") return y.to(x.scalar_type());
  const auto active = at::gelu(y).to(x.scalar_type());
  if (activation_ == "gelu") return out_(active);
  return (activation_ == "half_glu" ? active : out_(active)) * at::sigmoid(gate_(active));
}

Check ssm_activation() { return one_of({"glu", "full_glu", "half_glu", "gelu", "none"}); }

}  // namespace weft
