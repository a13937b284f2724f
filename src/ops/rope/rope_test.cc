#include "ops/rope/rope.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "ops/reference_check.h"
#include "ops/rope/rope_cases.h"

namespace weft::ops {
namespace {

at::Tensor positions_for(const RopeCase& c, int64_t below) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
  return at::randint(0, below, {c.batch, c.tokens}, generator, at::TensorOptions().dtype(at::kLong));
}

TensorFunction turn(const at::Tensor& positions, const Rope& options) {
  return [=](const TensorList& t) {
    auto there = options;
    if (there.frequencies.defined()) there.frequencies = there.frequencies.to(t[0].device());
    return TensorList{rope(t[0], positions.to(t[0].device()), there)};
  };
}

TEST(Rope, MatchesReference) {
  const RopeBounds bounds;
  for (const auto& c : rope_cases())
    for (const int64_t below : {int64_t{100}, int64_t{1} << 20}) {
      SCOPED_TRACE(fmt::format("[{}, {}, {}, {}], dim {}, interleaved {}, positions below {}", c.batch,
                               c.tokens, c.heads, c.width, c.dim, c.interleaved, below));
      const auto fn = turn(positions_for(c, below), {.dim = c.dim, .interleaved = c.interleaved});
      const TensorList inputs = {normal({c.batch, c.tokens, c.heads, c.width}, 1)};
      expect_matches_reference(fn, inputs, at::kFloat, bounds.fp32);
      expect_matches_reference(fn, inputs, at::kBFloat16, bounds.half);
      expect_matches_reference(fn, inputs, at::kHalf, bounds.half);
    }
}

TEST(Rope, GivenFrequenciesForAllTokensOrEach) {
  const RopeBounds bounds;
  for (const auto& c : rope_cases()) {
    const int64_t pairs = (c.dim ? c.dim : c.width) / 2;
    const TensorList inputs = {normal({c.batch, c.tokens, c.heads, c.width}, 1)};
    for (const auto& frequencies : {normal({pairs}, 2), normal({c.batch, c.tokens, pairs}, 3)}) {
      const Rope options{c.dim, 10000, c.interleaved, frequencies, 1.3};
      expect_matches_reference(turn(positions_for(c, 1000), options), inputs, at::kFloat, bounds.fp32);
      expect_matches_reference(turn(positions_for(c, 1000), options), inputs, at::kBFloat16, bounds.half);
    }
  }
}

TEST(Rope, FrequenciesStandForTheta) {
  const auto x = normal({2, 5, 3, 8}, 1).to(at::kFloat);
  const auto positions = positions_for({2, 5, 3, 8, 0, false}, 100);
  const auto list = at::pow(at::full({}, 500.0, at::kDouble), at::arange(4, at::kDouble) / -4.0);
  const auto expected = 0.5 * rope(x, positions, {.theta = 500});
  EXPECT_LE(relative_error(rope(x, positions, {.frequencies = list, .magnitude = 0.5}), expected), 1e-6);
  const auto each = list.expand({2, 5, 4});
  EXPECT_LE(relative_error(rope(x, positions, {.frequencies = each, .magnitude = 0.5}), expected), 1e-6);
}

TEST(Rope, ReferenceGradients) {
  const auto positions = at::tensor({3, 0, 11}, at::kLong).unsqueeze(0);
  for (const bool interleaved : {false, true})
    expect_finite_differences(turn(positions, {.dim = 4, .theta = 100, .interleaved = interleaved}),
                              {normal({1, 3, 2, 6}, 1)});
}

TEST(Rope, SameForAnyNumberOfThreads) {
  const RopeCase c{2, 300, 3, 24, 20, false};
  expect_same_for_threads(turn(positions_for(c, 1000), {.dim = c.dim}),
                          {normal({2, 300, 3, 24}, 1).to(at::kFloat)});
}

TEST(Rope, AnglesAreTheDocumentedOnes) {
  // Pair 1 of 2 turns by position * 100^(-1/2) = 0.3 radians; pair 0 by 3.
  const auto x = at::tensor({1.0f, 0.0f, 0.0f, 1.0f}).view({1, 1, 1, 4});
  const auto position = at::full({1, 1}, 3, at::kLong);
  const auto half = at::tensor({std::cos(3.0), -std::sin(0.3), std::sin(3.0), std::cos(0.3)});
  const auto interleaved = at::tensor({std::cos(3.0), std::sin(3.0), -std::sin(0.3), std::cos(0.3)});
  EXPECT_LE(relative_error(rope(x, position, {.theta = 100}), half), 1e-6);
  EXPECT_LE(relative_error(rope(x, position, {.theta = 100, .interleaved = true}), interleaved), 1e-6);
}

TEST(Rope, ScoresDependOnDistanceOnly) {
  const auto q = normal({1, 1, 1, 64}, 1).to(at::kFloat), k = normal({1, 1, 1, 64}, 2).to(at::kFloat);
  const auto score = [&](int64_t at_q, int64_t at_k) {
    return (rope(q, at::full({1, 1}, at_q, at::kLong), {}) * rope(k, at::full({1, 1}, at_k, at::kLong), {}))
        .sum()
        .item<double>();
  };
  EXPECT_NEAR(score(7, 2), score(1000007, 1000002), 1e-4);
}

TEST(Rope, SecondDerivativesFlowThrough) {
  const auto x = normal({1, 2, 1, 4}, 1).to(at::kFloat).requires_grad_();
  const auto y = rope(x, at::tensor({1, 2}, at::kLong).unsqueeze(0), {});
  const auto first =
      torch::autograd::grad({y.square().sum()}, {x}, {}, true, true)[0];  // 2 x: a turn keeps length
  EXPECT_LE(relative_error(first, 2 * x), 1e-6);
  EXPECT_LE(relative_error(torch::autograd::grad({first.sum()}, {x})[0], at::full({1, 2, 1, 4}, 2.0)), 1e-6);
}

TEST(Rope, ErrorsNameWhatIsWrong) {
  const auto x = at::zeros({1, 2, 1, 6});
  const auto positions = at::zeros({1, 2}, at::kLong);
  EXPECT_EQ(error_text([&] {
              rope(x, at::zeros({1, 3}, at::kLong), {});
            }),
            "rope: positions is [1, 3], expected [1, 2]");
  EXPECT_EQ(error_text([&] { rope(x, positions, {.dim = 3}); }),
            "rope: 3 channels are to be rotated; expected an even number from 2 to the head width 6");
  EXPECT_EQ(error_text([&] {
              rope(x, at::zeros({1, 2}), {});
            }),
            "rope: positions have type Float, expected int64");
  EXPECT_EQ(error_text([&] { rope(x, positions, {.frequencies = at::ones({2}, at::kDouble)}); }),
            "rope: frequencies is [2], expected [3]");
}

TEST(Rope, CallableAsOperator) {
  const auto op = c10::Dispatcher::singleton()
                      .findSchemaOrThrow("weft::rope", "")
                      .typed<at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, double, bool,
                                        const std::optional<at::Tensor>&, double)>();
  const auto x = normal({1, 2, 1, 6}, 1).to(at::kFloat);
  const auto positions = at::tensor({5, 6}, at::kLong).unsqueeze(0);
  EXPECT_TRUE(at::equal(op.call(x, positions, 4, 100, true, std::nullopt, 1.0),
                        rope(x, positions, {.dim = 4, .theta = 100, .interleaved = true})));
}

}  // namespace
}  // namespace weft::ops
