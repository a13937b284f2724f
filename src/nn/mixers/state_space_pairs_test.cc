// Two state-space mixers that are the same system written differently, set to the same numbers: their outputs agree. What a
// wrong factor 2, sign or discretisation breaks. reductions_test.cc compares single mixers with plain recurrences.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include <gtest/gtest.h>

#include <cmath>

#include "nn/mixer.h"
#include "ops/reference_check.h"

namespace weft {
namespace {

constexpr double kBound = 1e-10;  // relative to the largest output, fp64

at::Tensor random(at::IntArrayRef sizes, uint64_t seed) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(seed);
  return at::randn(sizes, generator, at::TensorOptions().dtype(at::kDouble));
}

// A mixer in fp64 with its parameters by name.
class Instance {
 public:
  Instance(const std::string& options, int64_t width) {
    mixer_ = make_mixer(Node::parse("{mixer: " + options + "}", "test"), Site{.width = width});
    mixer_->initialize(11);
    mixer_->to(at::kDouble);
  }
  at::Tensor get(const std::string& name) const {
    for (const auto& [known, parameter] : mixer_->parameters())
      if (known == name) return parameter->value;
    throw std::runtime_error("no parameter " + name);
  }
  void set(const std::string& name, const at::Tensor& value) {
    get(name).copy_(value.is_complex() ? at::view_as_real(value.contiguous()) : value);
  }
  void fill(const std::string& name, double value) { get(name).fill_(value); }
  void copy(const Instance& from, const std::vector<std::string>& names, const std::string& prefix = "",
            const std::string& from_prefix = "") {
    for (const auto& name : names) set(prefix + name, from.get(from_prefix + name));
  }
  at::Tensor operator()(const at::Tensor& x) {
    State state = mixer_->initial_state(x.size(0), x.options());
    return mixer_->run(x, state, Context::at_positions(at::zeros({x.size(0)}, at::kLong), x.size(1)));
  }

 private:
  std::unique_ptr<SequenceMixer> mixer_;
};

at::Tensor complex_of(const at::Tensor& pairs) { return at::view_as_complex(pairs.contiguous()); }

class StateSpacePairs : public testing::Test {
  const at::NoGradGuard no_grad_;
};

TEST_F(StateSpacePairs, S4WithoutLowRankIsBilinearS4d) {
  for (const char* kernel : {"powers", "cauchy"}) {
    Instance s4(std::string("s4, states: 8, copies: 3, activation: none, kernel: ") + kernel, 3);
    Instance s4d("s4d, states: 8, copies: 3, discretization: bilinear, activation: none", 3);
    s4.set("B", random({3, 4, 2}, 2));
    s4d.copy(s4, {"log_dt", "A_re_log", "A_im", "B", "C", "D"}, "ssm.");
    const auto x = random({2, 50, 3}, 1);
    EXPECT_GE(relative_error(s4(x), s4d(x)), 1e-3) << "P does nothing";
    s4.fill("P", 0);
    EXPECT_LE(relative_error(s4(x), s4d(x)), kBound) << kernel;
  }
}

// One input and one output, and as many systems side by side in one S5.
TEST_F(StateSpacePairs, S5OfBlocksIsABankOfS4d) {
  for (const int64_t channels : {1, 3}) {
    const int64_t pairs = 4;
    Instance s5(fmt::format("s5, states: {}, activation: none", 2 * pairs * channels), channels);
    Instance s4d(fmt::format("s4d, states: {}, copies: {}, activation: none", 2 * pairs, channels), channels);
    s4d.set("ssm.B", random({channels, pairs, 2}, 2));
    const auto lambda = at::complex(-at::exp(s4d.get("ssm.A_re_log")), s4d.get("ssm.A_im"));
    s5.set("A", lambda.reshape({-1}));
    s5.set("log_dt", s4d.get("ssm.log_dt").repeat_interleave(pairs));
    s5.set("D", s4d.get("ssm.D"));
    const auto own = at::eye(channels, at::kDouble);
    s5.set("B", (complex_of(s4d.get("ssm.B")).unsqueeze(-1) * own.unsqueeze(1)).reshape({-1, channels}));
    s5.set("C", (complex_of(s4d.get("ssm.C")).unsqueeze(0) * own.unsqueeze(-1)).reshape({channels, -1}));
    const auto x = random({2, 50, channels}, 1);
    EXPECT_LE(relative_error(s5(x), s4d(x)), kBound) << channels;
  }
}

TEST_F(StateSpacePairs, LruIsS5AfterItsDiscretisation) {
  Instance s5("s5, states: 12, activation: none", 5);
  Instance lru("lru, states: 6, activation: none", 5);
  const auto positive = at::abs(random({6}, 3)) + 0.1;
  const auto lambda = at::complex(-at::abs(random({6}, 2)), positive);  // lru's angles are positive
  s5.set("A", lambda);
  const auto z = lambda * at::exp(s5.get("log_dt"));
  lru.set("nu_log", at::log(-at::real(z)));
  lru.set("theta_log", at::log(at::imag(z)));
  lru.fill("gamma_log", 0);
  lru.set("B", ((at::exp(z) - 1) / lambda).unsqueeze(-1) * complex_of(s5.get("B")));
  lru.set("C", 2 * complex_of(s5.get("C")));  // s5 keeps one of each conjugate pair, lru no pairs
  lru.set("D", s5.get("D"));
  const auto x = random({2, 50, 5}, 1);
  EXPECT_LE(relative_error(lru(x), s5(x)), kBound);
}

TEST_F(StateSpacePairs, MovingAveragesAreS4dReal) {
  const int64_t states = 3;
  Instance s4d("s4d, states: 6, copies: 4, init: real, activation: none", 4);
  Instance ema("mega_ema, states: 3, activation: none", 4);
  s4d.fill("ssm.A_im", 0);
  s4d.set("ssm.B", random({4, states, 2}, 2) * at::tensor({1.0, 0.0}, at::kDouble));
  const auto rate = at::exp(s4d.get("ssm.A_re_log"));
  const auto q = at::exp(-rate * at::exp(s4d.get("ssm.log_dt")).unsqueeze(-1));
  const auto p = 1 - 0.3 * q;  // any p above 1 - q
  ema.set("delta", at::logit(p));
  ema.set("alpha", at::logit((1 - q) / p));
  ema.set("beta", (1 - q) / rate * s4d.get("ssm.B").select(-1, 0) / p);
  ema.set("gamma", 2 * s4d.get("ssm.C").select(-1, 0) * std::sqrt(static_cast<double>(states)));
  ema.set("omega", s4d.get("ssm.D"));
  const auto x = random({2, 50, 4}, 1);
  EXPECT_LE(relative_error(ema(x), s4d(x)), kBound);
}

TEST_F(StateSpacePairs, DssIsS4dWithInputMapOne) {
  Instance dss("dss, states: 8, activation: none", 3);
  Instance s4d("s4d, states: 8, init: lin, activation: none", 3);  // B = 1
  s4d.copy(dss, {"log_dt", "A_re_log", "A_im", "C", "D"}, "ssm.");
  const auto x = random({2, 50, 3}, 1);
  EXPECT_LE(relative_error(dss(x), s4d(x)), kBound);
}

// The sum of a decaying mode over L taps tends to a finite one; its sign is that of 1 / lambda.
TEST_F(StateSpacePairs, SoftmaxDssBecomesS4dOverLongWindows) {
  const double rate = 0.5, step = 0.5;
  const auto x = random({2, 8, 3}, 1);
  Instance s4d("s4d, states: 8, init: lin, activation: none", 3);
  s4d.fill("ssm.log_dt", std::log(step));
  s4d.fill("ssm.A_re_log", std::log(rate));
  s4d.fill("ssm.D", 0);
  const auto expected = s4d(x);
  for (const int64_t length : {8, 16, 32, 128}) {
    Instance dss(fmt::format("dss, states: 8, kernel: softmax, length: {}, activation: none", length), 3);
    dss.copy(s4d, {"log_dt", "A_im", "C", "D"}, "", "ssm.");
    dss.fill("A_re", -rate);
    const double left = std::exp(-rate * step * static_cast<double>(length));
    const double error = relative_error(-dss(x), expected);
    EXPECT_LE(error, 3 * left + kBound) << length;  // |1 / (1 - left) - 1|, and modes cancel a little
    if (length < 100) {
      EXPECT_GE(error, left / 30) << length;
    }
  }
}

// Against the softmax as such, with modes that decay and that grow.
TEST_F(StateSpacePairs, SoftmaxDssIsASoftmaxOverTaps) {
  const int64_t length = 11, tokens = 30;
  Instance dss("dss, states: 6, kernel: softmax, length: 11, activation: none", 2);
  dss.fill("log_dt", std::log(0.2));
  dss.set("A_re", at::tensor({-1.5, 0.7, 2.5}, at::kDouble).unsqueeze(0));
  dss.set("A_im", at::tensor({1.0, -2.0, 0.5}, at::kDouble).unsqueeze(0));
  const auto lambda = at::complex(dss.get("A_re"), dss.get("A_im"));  // [1, N / 2]
  const auto grown = at::exp(0.2 * lambda.unsqueeze(-1) * at::arange(length, at::kDouble));
  const auto weights = complex_of(dss.get("C")) / lambda;  // [E, N / 2]
  const auto kernel = 2 * at::real((weights.unsqueeze(-1) * grown / grown.sum(-1, true)).sum(1));
  const auto x = random({1, tokens, 2}, 1);
  auto expected = dss.get("D") * x;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t l = 0; l <= std::min(t, length - 1); ++l)
      expected.select(1, t).add_(kernel.select(1, l) * x.select(1, t - l));
  EXPECT_LE(relative_error(dss(x), expected), kBound);
  dss.set("A_re", at::tensor({-900.0, 900.0, 0.0}, at::kDouble).unsqueeze(0));  // powers would overflow
  EXPECT_TRUE(at::isfinite(dss(x)).all().item<bool>());
}

// Higher degrees token by token: y_t = sum over p and lags i of 2 Re(C a^i b^p) x_{t-i} ... x_{t-i-p+1}.
TEST_F(StateSpacePairs, LiquidS4AddsProductsOfNeighbours) {
  const int64_t tokens = 20;
  Instance liquid("liquid_s4, degree: 3, states: 6, activation: none", 2);
  liquid.fill("ssm.log_dt", std::log(0.3));
  liquid.set("ssm.B", 1 + random({1, 3, 2}, 2));
  const auto lambda = at::complex(-at::exp(liquid.get("ssm.A_re_log")), liquid.get("ssm.A_im"));
  const auto a = at::exp(0.3 * lambda), b = (a - 1) / lambda * complex_of(liquid.get("ssm.B"));
  const auto c = complex_of(liquid.get("ssm.C"));
  const auto x = random({1, tokens, 2}, 1);
  auto expected = liquid.get("ssm.D") * x;
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t lag = 0; lag <= t; ++lag)
      for (int64_t degree = 1; degree <= 3; ++degree) {
        if (t - lag - degree + 1 < 0) continue;
        auto product = at::ones({1, 2}, at::kDouble);
        for (int64_t back = 0; back < degree; ++back) product = product * x.select(1, t - lag - back);
        const auto tap = 2 * at::real((c * at::pow(a, lag) * at::pow(b, degree)).sum(-1));
        expected.select(1, t).add_(tap * product);
      }
  EXPECT_LE(relative_error(liquid(x), expected), kBound);
}

TEST_F(StateSpacePairs, GssWithoutGateIsDssBetweenProjections) {
  const int64_t width = 6, inputs = 4;
  Instance gss("gss, inner: 10, channels: 4, states: 5, gate: false", width);
  Instance dss("dss, states: 10, activation: none", inputs);
  dss.fill("log_dt", 0);
  dss.set("A_re_log", gss.get("lambda_re_log").unsqueeze(0));
  dss.set("A_im", at::exp(gss.get("lambda_im_log")).unsqueeze(0));
  dss.set("C", gss.get("C") / 2);  // gss keeps no conjugate pairs
  dss.set("D", gss.get("D"));
  gss.set("norm.weight", random({inputs}, 2));
  const auto x = random({2, 50, width}, 1);
  const auto v = at::layer_norm(at::gelu(at::linear(x, gss.get("in.weight"))), {inputs},
                                gss.get("norm.weight"), gss.get("norm.bias"), Site{}.norm_eps);
  const auto expected = at::linear(at::linear(dss(v), gss.get("gate.weight")), gss.get("out.weight"));
  EXPECT_LE(relative_error(gss(x), expected), kBound);
}

// Channel 0 of mamba carries the signal, channel 1 a constant from which B and C are read; step size from its bias.
TEST_F(StateSpacePairs, MambaThatIsFrozenIsS4dReal) {
  const int64_t states = 3;
  Instance mamba("mamba, inner: 2, states: 3, conv: 4, dt_rank: 1", 2);
  Instance s4d("s4d, states: 6, activation: none", 1);
  mamba.set("in.weight", at::tensor({1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0}, at::kDouble).view({4, 2}));
  mamba.fill("conv.weight", 0);
  mamba.get("conv.weight").select(1, 3).fill_(1);
  mamba.set("conv.bias", at::tensor({0.0, 1.5}, at::kDouble));
  const auto b = random({states}, 2), c = random({states}, 3);
  mamba.fill("x.weight", 0);
  mamba.get("x.weight").select(1, 1).slice(0, 1).copy_(at::cat({b, c}));
  mamba.fill("dt.weight", 0);
  mamba.set("out.weight", at::tensor({1.0, 0.0, 0.0, 0.0}, at::kDouble).view({2, 2}));

  const double constant = 1.5 / (1 + std::exp(-1.5));
  const auto dt = at::softplus(mamba.get("dt.bias")[0]);
  const auto lambda = -at::exp(mamba.get("A_log")[0]);
  const auto euler =
      dt * constant * b * lambda / at::expm1(dt * lambda);  // s4d multiplies it by (a - 1) / lambda
  const auto real = at::zeros_like(euler);
  s4d.fill("ssm.A_im", 0);
  s4d.set("ssm.log_dt", at::log(dt).view({1}));
  s4d.set("ssm.A_re_log", mamba.get("A_log")[0].unsqueeze(0));
  s4d.set("ssm.B", at::complex(euler, real).unsqueeze(0));
  s4d.set("ssm.C", at::complex(constant / 2 * c, real).unsqueeze(0));
  s4d.set("ssm.D", mamba.get("skip").slice(0, 0, 1));
  const auto x = random({2, 50, 2}, 1);
  const auto expected = s4d(at::silu(x.slice(2, 0, 1))) * at::silu(x.slice(2, 1, 2));
  EXPECT_LE(relative_error(mamba(x).slice(2, 0, 1), expected), kBound);
}

// Held inputs are what the zoh rule integrates, so half as many steps of twice the size end in the same states.
TEST_F(StateSpacePairs, DoubledStepsReadASignalOfHalfTheRate) {
  struct Line {
    const char *options, *log_dt;
  };
  for (const auto& line : {Line{"s4d, states: 8, activation: none", "ssm.log_dt"},
                           Line{"s5, states: 8, activation: none", "log_dt"},
                           Line{"dss, states: 8, activation: none", "log_dt"}}) {
    Instance fast(line.options, 4), slow(line.options, 4);
    const auto x = random({2, 25, 4}, 1);
    const auto expected = fast(x.repeat_interleave(2, 1)).slice(1, 1, 50, 2);
    EXPECT_GE(relative_error(slow(x), expected), 1e-3) << line.options;
    slow.get(line.log_dt).add_(std::log(2.0));
    EXPECT_LE(relative_error(slow(x), expected), kBound) << line.options;
  }
}

}  // namespace
}  // namespace weft
