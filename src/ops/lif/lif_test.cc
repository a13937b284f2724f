#include "ops/lif/lif.h"

#include <gtest/gtest.h>

#include "ops/reference_check.h"

namespace weft::ops {
namespace {

TensorList results(const LifResult& r) { return {r.spikes, r.state}; }

TEST(Lif, SpikesByHand) {
  for (const auto type : {at::kDouble, at::kFloat}) {
    const auto x = at::tensor({1.5, 1.5, 2.0, 0.2, 3.0, 0.9}).to(type).view({1, 6, 1});
    const auto result = lif({.x = x});
    EXPECT_TRUE(at::equal(result.spikes.flatten(), at::tensor({0.0, 1.0, 1.0, 0.0, 1.0, 0.0}).to(type)));
    EXPECT_NEAR(result.state.item<double>(), 0.45, 1e-7);
  }
}

TEST(Lif, ConstantInputs) {
  const auto quiet = lif({.x = at::full({1, 200, 3}, 0.999f)});
  EXPECT_EQ(quiet.spikes.sum().item<float>(), 0);
  EXPECT_NEAR(quiet.state.max().item<float>(), 0.999, 1e-6);  // from below
  EXPECT_EQ(lif({.x = at::full({1, 50, 3}, 2.0f)}).spikes.min().item<float>(), 1);
}

// The gradient written out as a loop over numbers, away from autograd.
TEST(Lif, GradientIsTheSurrogatesWithoutTheReset) {
  const double tau = 3, threshold = 0.7, alpha = 2.5;
  const auto x = normal({1, 12, 1}, 3) * 2, up = normal({1, 12, 1}, 4);
  const auto leaf = x.clone().requires_grad_(true),
             v0 = at::full({1, 1}, 0.3, x.options()).requires_grad_(true);
  const auto result =
      lif({.x = leaf, .initial_state = v0, .tau = tau, .threshold = threshold, .alpha = alpha});
  const auto found = torch::autograd::grad({(result.spikes * up).sum() + 2 * result.state.sum()}, {leaf, v0});
  std::vector<double> charged(12);
  double v = 0.3;
  int64_t fired = 0;
  for (size_t t = 0; t < 12; ++t) {
    charged[t] = v + (x[0][t].item<double>() - v) / tau;
    fired += charged[t] >= threshold;
    v = charged[t] >= threshold ? 0 : charged[t];
  }
  ASSERT_GT(fired, 0);
  double dv = 2;
  for (int64_t t = 11; t >= 0; --t) {
    const double z = charged[static_cast<size_t>(t)] - threshold, s = 1 / (1 + std::exp(-alpha * z));
    const double dcharged = up[0][t].item<double>() * alpha * s * (1 - s) + (z >= 0 ? 0 : dv);
    EXPECT_NEAR(found[0][0][t].item<double>(), dcharged / tau, 1e-12) << t;
    dv = dcharged * (1 - 1 / tau);
  }
  EXPECT_NEAR(found[1].item<double>(), dv, 1e-12);
}

TEST(Lif, KernelsMatchReference) {
  for (const int64_t channels : {1, 7, 16, 37})
    for (const int64_t tokens : {0, 1, 2, 50}) {
      const TensorList inputs{normal({3, tokens, channels}, 1) * 2, normal({3, channels}, 2) * 0.5};
      auto starts = normal({3, tokens}, 5) > 1;
      for (const bool cut : {false, true})
        expect_matches_reference(
            [&](const TensorList& t) {
              // v is kept in fp32 beside narrower inputs
              const auto v = t[1].scalar_type() == at::kDouble ? t[1] : t[1].to(at::kFloat);
              return results(
                  lif({.x = t[0], .initial_state = v, .starts = cut ? starts.to(v.device()) : at::Tensor()}));
            },
            inputs, at::kFloat, 1e-5);
    }
}

TEST(Lif, StatePassesOnAndStartsReset) {
  const auto x = normal({2, 20, 200}, 1).to(at::kFloat) * 2;
  const auto whole = lif({.x = x});
  const auto first = lif({.x = x.slice(1, 0, 9)});
  const auto second = lif({.x = x.slice(1, 9), .initial_state = first.state});
  EXPECT_TRUE(at::equal(at::cat({first.spikes, second.spikes}, 1), whole.spikes));
  EXPECT_TRUE(at::equal(second.state, whole.state));
  const auto starts = at::zeros({2, 20}, at::kBool);
  starts.select(1, 9).fill_(true);
  const auto packed = lif({.x = x, .starts = starts});
  EXPECT_TRUE(at::equal(packed.spikes.slice(1, 9), lif({.x = x.slice(1, 9)}).spikes));
  EXPECT_FALSE(at::equal(packed.spikes, whole.spikes));
}

TEST(Lif, SameForAnyNumberOfThreads) {
  expect_same_for_threads([](const TensorList& t) { return results(lif({.x = t[0]})); },
                          {normal({5, 300, 40}, 1).to(at::kFloat) * 2});
}

TEST(Lif, ErrorsNameWhatIsWrong) {
  EXPECT_EQ(error_text([] {
              lif({.x = at::zeros({2, 3, 4}), .initial_state = at::zeros({2, 3})});
            }),
            "lif: initial_state is [2, 3], expected [2, 4]");
  EXPECT_EQ(error_text([] {
              lif({.x = at::zeros({2, 3, 4}), .tau = 0.5});
            }),
            "lif: tau is 0.5; it must be at least 1");
}

}  // namespace
}  // namespace weft::ops
