// What the families of state-space models become in special cases: each a fact about two mixers, or a mixer and a plain
// recurrence, with equal parameters. fp64 throughout.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

#include "nn/mixer.h"

namespace weft {
namespace {

constexpr int64_t kWidth = 6, kTokens = 23;

std::unique_ptr<SequenceMixer> mixer_of(const std::string& text) {
  auto mixer = make_mixer(Node::parse(text, "test"), {.width = kWidth});
  mixer->initialize(11);
  mixer->to(at::kDouble);
  return mixer;
}

at::Tensor& parameter(SequenceMixer& mixer, const std::string& name) {
  for (auto& [found, parameter] : mixer.parameters())
    if (found == name) return parameter->value;
  ADD_FAILURE() << "no parameter " << name;
  static at::Tensor none;
  return none;
}

at::Tensor input(int64_t tokens = kTokens) {
  return at::sin(at::arange(2 * tokens * kWidth, at::kDouble) * 1.7 + 0.3).view({2, tokens, kWidth});
}

at::Tensor run(SequenceMixer& mixer, const at::Tensor& x) {
  auto state = mixer.initial_state(x.size(0), x.options());
  auto context = Context::at_positions(at::zeros({x.size(0)}, at::kLong), x.size(1));
  context.dtype = at::kDouble;
  return mixer.run(x, state, context);
}

void expect_equal(const at::Tensor& a, const at::Tensor& b, double bound = 1e-10) {
  EXPECT_LT((a - b).abs().max().item<double>(), bound * std::max(1.0, b.abs().max().item<double>()));
}

TEST(Reductions, LiquidS4OfDegreeOneIsS4d) {
  const auto liquid = mixer_of("{mixer: liquid_s4, states: 8, degree: 1}"),
             s4d = mixer_of("{mixer: s4d, states: 8}");
  for (auto& [name, p] : s4d->parameters()) p->value.copy_(parameter(*liquid, name));
  expect_equal(run(*liquid, input()), run(*s4d, input()));
}

// Its second term by the sums of its definition.
TEST(Reductions, LiquidS4AddsTheCorrelationOfNeighbours) {
  const auto two = mixer_of("{mixer: liquid_s4, states: 8, degree: 2, activation: none}");
  const auto one = mixer_of("{mixer: liquid_s4, states: 8, degree: 1, activation: none}");
  for (auto& [name, p] : one->parameters()) p->value.copy_(parameter(*two, name));
  const auto x = input();
  const auto dt = parameter(*two, "ssm.log_dt").exp().unsqueeze(1);
  const auto pairs = [&](const char* name) {
    return at::view_as_complex(parameter(*two, name).contiguous());
  };
  const auto lambda = at::complex(-parameter(*two, "ssm.A_re_log").exp(), parameter(*two, "ssm.A_im"));
  const auto a = at::exp(dt * lambda), b = (a - 1) / lambda * pairs("ssm.B"), c = 2 * pairs("ssm.C");
  auto h = at::zeros({2, kWidth, 4}, at::kComplexDouble);
  for (int64_t t = 0; t < kTokens; ++t) {
    const auto product = t == 0 ? at::zeros({2, kWidth}, at::kDouble) : x.select(1, t) * x.select(1, t - 1);
    h = a * h + b * b * product.unsqueeze(-1);
    const auto extra = (run(*two, x) - run(*one, x)).select(1, t);
    expect_equal(extra, at::real((c * h).sum(-1)));
  }
}

TEST(Reductions, MegaEmaIsItsExponentialSums) {
  const auto ema = mixer_of("{mixer: mega_ema, states: 3, activation: none}");
  const auto x = input();
  const auto p = at::sigmoid(parameter(*ema, "delta")), q = 1 - p * at::sigmoid(parameter(*ema, "alpha"));
  auto h = at::zeros({2, kWidth, 3}, at::kDouble);
  std::vector<at::Tensor> rows;
  for (int64_t t = 0; t < kTokens; ++t) {
    h = q * h + p * parameter(*ema, "beta") * x.select(1, t).unsqueeze(-1);
    rows.push_back((parameter(*ema, "gamma") * h).sum(-1) / std::sqrt(3.0) +
                   parameter(*ema, "omega") * x.select(1, t));
  }
  expect_equal(run(*ema, x), at::stack(rows, 1));
}

TEST(Reductions, GssWithoutGateIsADiagonalStateSpace) {
  const auto gss = mixer_of("{mixer: gss, states: 5, channels: 6, inner: 6, gate: false}");
  const auto x = input();
  auto v = at::gelu(at::linear(x, parameter(*gss, "in.weight")));
  v = at::layer_norm(v, {6}, parameter(*gss, "norm.weight"), parameter(*gss, "norm.bias"), 1e-5);
  const auto lambda =
      at::complex(-parameter(*gss, "lambda_re_log").exp(), parameter(*gss, "lambda_im_log").exp());
  const auto a = at::exp(lambda), b = (a - 1) / lambda,
             c = at::view_as_complex(parameter(*gss, "C").contiguous());
  auto h = at::zeros({2, 6, 5}, at::kComplexDouble);
  std::vector<at::Tensor> rows;
  for (int64_t t = 0; t < kTokens; ++t) {
    h = a * h + b * v.select(1, t).unsqueeze(-1);
    rows.push_back(at::real((c * h).sum(-1)) + parameter(*gss, "D") * v.select(1, t));
  }
  const auto s = at::stack(rows, 1);
  expect_equal(run(*gss, x),
               at::linear(at::linear(s, parameter(*gss, "gate.weight")), parameter(*gss, "out.weight")));
}

TEST(Reductions, S4WithoutItsLowRankPartIsBilinearS4d) {
  const auto s4 = mixer_of("{mixer: s4, states: 8, activation: none}");
  const auto s4d = mixer_of("{mixer: s4d, states: 8, discretization: bilinear, activation: none}");
  parameter(*s4, "P").zero_();
  for (auto& [name, p] : s4d->parameters()) {
    const auto plain = name.substr(name.find('.') + 1);
    p->value.copy_(parameter(*s4, plain).reshape(p->value.sizes()));
  }
  expect_equal(run(*s4, input()), run(*s4d, input()), 1e-9);
}

// Steps of half the size over every sample twice: the state after a doubled sample is that after one step of twice the size.
TEST(Reductions, S4dIsResampledByItsStepSize) {
  const auto slow = mixer_of("{mixer: s4d, states: 8, activation: none}");
  const auto fast = mixer_of("{mixer: s4d, states: 8, activation: none}");
  parameter(*fast, "ssm.log_dt").sub_(std::log(2.0));
  const auto x = input();
  const auto twice = x.repeat_interleave(2, 1);
  expect_equal(run(*fast, twice).slice(1, 1, std::nullopt, 2), run(*slow, x));
}

// The impulse response of a filter is the filter.
TEST(Reductions, LongConvolutionsAnswerAnImpulseWithTheirTaps) {
  auto impulse = at::zeros({1, 12, kWidth}, at::kDouble);
  impulse.select(1, 0).fill_(1);
  const auto free = mixer_of("{mixer: long_conv, length: 12, shrink: 0.01, activation: none}");
  const auto kernel = parameter(*free, "kernel");
  auto taps = kernel.sign() * at::relu(kernel.abs() - 0.01);
  auto expected = taps.t().clone();
  expected[0] += parameter(*free, "D");
  expect_equal(run(*free, impulse)[0], expected, 1e-12);

  const auto pieces = mixer_of("{mixer: sgconv, length: 12, piece: 3, activation: none}");
  parameter(*pieces, "D").zero_();
  const auto answer = run(*pieces, impulse)[0].t();  // [E, L]: pieces of 3, 3, 6 taps
  const auto weights = parameter(*pieces, "weights");
  expect_equal(answer.slice(1, 0, 3), weights[0], 1e-12);
  expect_equal(answer.slice(1, 3, 6), 0.5 * weights[1], 1e-12);
  const auto stretched = at::upsample_linear1d(weights[2].unsqueeze(0), {6}, false)[0];
  expect_equal(answer.slice(1, 6, 12), 0.25 * stretched, 1e-12);
}

TEST(Reductions, TnnWithAFlatNetworkIsAnExponentialSum) {
  const auto tnn = mixer_of("{mixer: tnn, length: 64, hidden: 4, decay: 0.9}");
  parameter(*tnn, "rpe.w3").zero_();
  parameter(*tnn, "rpe.b3").fill_(1);
  const auto x = input();
  const auto v = at::silu(at::linear(x, parameter(*tnn, "in.weight")));
  auto sum = at::zeros({2, kWidth}, at::kDouble);
  std::vector<at::Tensor> rows;
  for (int64_t t = 0; t < kTokens; ++t) rows.push_back(sum = 0.9 * sum + v.select(1, t));
  const auto gate = at::silu(at::linear(x, parameter(*tnn, "gate.weight")));
  expect_equal(run(*tnn, x), at::linear(gate * at::stack(rows, 1), parameter(*tnn, "out.weight")));
}

// One head channel, and a shift that is the identity: q times a diagonal state space of k v.
TEST(Reductions, H3WithoutShiftIsAGatedStateSpace) {
  const auto h3 = mixer_of("{mixer: h3, states: 8, shift: 4}"),
             s4d = mixer_of("{mixer: s4d, states: 8, activation: none}");
  parameter(*h3, "shift.C").zero_();
  parameter(*h3, "shift.D").fill_(1);
  for (auto& [name, p] : s4d->parameters()) p->value.copy_(parameter(*h3, name));
  const auto x = input();
  const auto qkv = at::linear(x, parameter(*h3, "qkv.weight"), parameter(*h3, "qkv.bias")).chunk(3, -1);
  const auto y = qkv[0] * run(*s4d, qkv[1] * qkv[2]);
  expect_equal(run(*h3, x), at::linear(y, parameter(*h3, "out.weight"), parameter(*h3, "out.bias")));
}

// Order 2 with a short convolution that does nothing: one filter between two products, by the sum of its definition.
TEST(Reductions, HyenaOfOrderTwoIsOneFilterBetweenProducts) {
  const auto hyena = mixer_of("{mixer: hyena, length: 30, hidden: 5, features: 3, conv: 2}");
  parameter(*hyena, "conv.weight").zero_();
  parameter(*hyena, "conv.weight").select(1, 1).fill_(1);
  const auto x = input();
  const auto z = at::linear(x, parameter(*hyena, "in.weight"), parameter(*hyena, "in.bias")).chunk(3, -1);
  const auto place = at::linspace(0, 1, 30, at::kDouble).unsqueeze(1);
  const auto angle = 2 * std::numbers::pi / 30 * at::arange(30, at::kDouble).unsqueeze(1) * 1e-4;
  auto h = at::cat({place, at::cos(angle), -at::sin(angle)}, 1);
  for (const std::string layer : {"1", "2"})
    h = at::sin(parameter(*hyena, "filter.frequency") *
                at::linear(h, parameter(*hyena, "filter.w" + layer), parameter(*hyena, "filter.b" + layer)));
  const auto window = at::exp(-place * parameter(*hyena, "filter.decay").abs()) + 0.05;
  const auto taps = at::linear(h, parameter(*hyena, "filter.w3")) * window;  // [L, E]
  const auto u = z[2] * z[1];
  std::vector<at::Tensor> rows;
  for (int64_t t = 0; t < kTokens; ++t) {
    auto sum = parameter(*hyena, "filter.D") * u.select(1, t);
    for (int64_t s = 0; s <= t; ++s) sum = sum + taps[s] * u.select(1, t - s);
    rows.push_back(sum * z[0].select(1, t));
  }
  expect_equal(run(*hyena, x), at::linear(at::stack(rows, 1), parameter(*hyena, "out.weight"),
                                          parameter(*hyena, "out.bias")));
}

}  // namespace
}  // namespace weft
