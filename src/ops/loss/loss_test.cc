#include "ops/loss/loss.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "ops/loss/loss_cases.h"
#include "ops/reference_check.h"

namespace weft::ops {
namespace {

// Random targets, every third one ignored.
at::Tensor targets_for(const LossCase& c) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
  auto targets = at::randint(0, c.vocabulary, {c.tokens}, generator, at::TensorOptions().dtype(at::kLong));
  for (int64_t i = 2; i < c.tokens; i += 3) targets[i] = kIgnoreTarget;
  return targets;
}

TensorFunction loss_of(const at::Tensor& targets, double scale) {
  return [=](const TensorList& t) {
    return TensorList{linear_cross_entropy(t[0], t[1], targets.to(t[0].device()), scale)};
  };
}

TensorList inputs_for(const LossCase& c) {
  return {normal({c.tokens, c.width}, 1),
          normal({c.vocabulary, c.width}, 2) / std::sqrt(static_cast<double>(c.width))};
}

TEST(Loss, MatchesReference) {
  const LossBounds bounds;
  for (const auto& c : loss_cases()) {
    SCOPED_TRACE(
        fmt::format("{} tokens of {}, vocabulary {}, scale {}", c.tokens, c.width, c.vocabulary, c.scale));
    if (c.vocabulary == 1) continue;  // loss 0 whatever the logit: see OneWord
    const auto fn = loss_of(targets_for(c), c.scale);
    expect_matches_reference(fn, inputs_for(c), at::kFloat, bounds.fp32);
    if (c.vocabulary > 1000) continue;
    expect_matches_reference(fn, inputs_for(c), at::kBFloat16, bounds.half);
    expect_matches_reference(fn, inputs_for(c), at::kHalf, bounds.half);
  }
}

TEST(Loss, OneWord) {
  const auto result =
      outputs_and_gradients(loss_of(at::zeros({2}, at::kLong), 1),
                            {normal({2, 3}, 1).to(at::kFloat), normal({1, 3}, 2).to(at::kFloat)});
  for (const auto& t : result) EXPECT_LE(t.abs().max().item<double>(), 1e-6);
}

TEST(Loss, ReferenceGradients) {
  const LossCase c{5, 4, 6};
  expect_finite_differences(loss_of(targets_for(c), 0.7), inputs_for(c));
}

// To rounding only: the matrix products are torch's, whose order of summation may depend on the number of
// threads.
TEST(Loss, AnyNumberOfThreads) {
  const LossCase c{300, 8, 20011};
  TensorList inputs;
  for (const auto& x : inputs_for(c)) inputs.push_back(x.to(at::kFloat));
  const auto with_threads = [&](int count) {
    const Threads limit(count);
    return outputs_and_gradients(loss_of(targets_for(c), 1), inputs);
  };
  const auto expected = with_threads(1), actual = with_threads(3);
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_LE(relative_error(actual[i], expected[i]), 1e-6) << i;
}

TEST(Loss, EqualLogitsGiveTheLogOfTheVocabulary) {
  const auto loss =
      linear_cross_entropy(at::zeros({3, 4}), at::ones({50, 4}), at::tensor({0, 49, -100}, at::kLong));
  EXPECT_LE(relative_error(loss, at::tensor({std::log(50.0), std::log(50.0), 0.0})), 1e-6);
}

TEST(Loss, LargeLogitsDoNotOverflow) {
  const auto hidden = at::full({1, 1}, 1e4f), weight = at::tensor({1.0f, -1.0f, 0.5f}).view({3, 1});
  const auto loss = linear_cross_entropy(hidden, weight, at::tensor({1}, at::kLong));
  EXPECT_FLOAT_EQ(loss.item<float>(), 2e4f);
}

TEST(Loss, IgnoredTokensHaveNoGradient) {
  auto hidden = normal({4, 6}, 1).to(at::kFloat);
  hidden[1].fill_(std::nan(""));  // not even a NaN there may reach the others
  const auto targets = at::tensor({3, -100, 0, -100}, at::kLong);
  const auto result = outputs_and_gradients(loss_of(targets, 1), {hidden, normal({9, 6}, 2).to(at::kFloat)});
  EXPECT_EQ(result[0][1].item<float>(), 0);
  EXPECT_TRUE(result[1][3].eq(0).all().item<bool>());
  EXPECT_FALSE(result[1][0].isnan().any().item<bool>());
}

TEST(Loss, OnlyTheWantedGradient) {
  const auto weight = normal({7, 4}, 2).to(at::kFloat).requires_grad_();
  const auto hidden = normal({3, 4}, 1).to(at::kFloat);
  linear_cross_entropy(hidden, weight, at::tensor({1, 2, 3}, at::kLong)).sum().backward();
  EXPECT_TRUE(weight.grad().defined());
  EXPECT_FALSE(
      linear_cross_entropy(hidden, weight.detach(), at::tensor({1, 2, 3}, at::kLong)).requires_grad());
}

TEST(Loss, NarrowHiddenWithWideWeight) {
  const auto hidden = normal({8, 16}, 1).to(at::kBFloat16).requires_grad_();
  const auto weight = normal({9, 16}, 2).to(at::kFloat).requires_grad_();
  const auto loss = linear_cross_entropy(hidden, weight, at::arange(8));
  EXPECT_EQ(loss.scalar_type(), at::kFloat);
  loss.sum().backward();
  EXPECT_EQ(hidden.grad().scalar_type(), at::kBFloat16);
  EXPECT_EQ(weight.grad().scalar_type(), at::kFloat);
}

TEST(Loss, ErrorsNameWhatIsWrong) {
  const auto hidden = at::zeros({3, 4}), weight = at::zeros({10, 4});
  EXPECT_EQ(error_text([&] {
              linear_cross_entropy(hidden, weight, at::tensor({1, 12, 3}, at::kLong));
            }),
            "linear_cross_entropy: target 12 at token 1 is outside the vocabulary of V = 10; expected 0 to "
            "9, or -100 for "
            "no loss");
  EXPECT_EQ(error_text([&] {
              linear_cross_entropy(hidden, at::zeros({10, 5}), at::zeros({3}, at::kLong));
            }),
            "linear_cross_entropy: weight is [10, 5], expected [-1, 4]");
  EXPECT_EQ(error_text([&] { linear_cross_entropy(hidden, weight, at::zeros({2}, at::kLong)); }),
            "linear_cross_entropy: targets is [2], expected [3]");
}

TEST(Loss, CallableAsOperator) {
  const auto op = c10::Dispatcher::singleton()
                      .findSchemaOrThrow("weft::linear_cross_entropy", "")
                      .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, double)>();
  const auto hidden = normal({3, 4}, 1).to(at::kFloat), weight = normal({5, 4}, 2).to(at::kFloat);
  const auto targets = at::tensor({1, 4, -100}, at::kLong);
  EXPECT_TRUE(
      at::equal(op.call(hidden, weight, targets, 2), linear_cross_entropy(hidden, weight, targets, 2)));
}

}  // namespace
}  // namespace weft::ops
