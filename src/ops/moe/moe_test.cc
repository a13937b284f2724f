#include "ops/moe/moe.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "ops/reference_check.h"

namespace weft::ops {
namespace {

using Row = std::vector<double>;

// The definition of `route` again, one token at a time, over plain numbers.
struct PlainRoute {
  std::vector<int64_t> experts;
  Row weights;
};
PlainRoute plain_route(const Row& logits, const Router& r, const Row& bias) {
  const int64_t total = static_cast<int64_t>(logits.size()), routed = total - r.always,
                size = routed / r.groups;
  Row s(logits.size());
  double sum = 0;
  for (const double l : logits) sum += std::exp(l);
  for (size_t e = 0; e < s.size(); ++e)
    s[e] = r.scores == Router::Scores::softmax ? std::exp(logits[e]) / sum : 1 / (1 + std::exp(-logits[e]));
  Row choice(s.begin(), s.begin() + routed);
  for (size_t e = 0; e < bias.size(); ++e) choice[e] += bias[e];
  const auto best_first = [](const Row& values) {
    std::vector<int64_t> order(values.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return values[a] > values[b]; });
    return order;
  };
  Row groups;
  for (int64_t g = 0; g < r.groups; ++g) {
    Row members(choice.begin() + g * size, choice.begin() + (g + 1) * size);
    std::sort(members.rbegin(), members.rend());
    groups.push_back(std::accumulate(members.begin(), members.begin() + std::min(size, r.group_best), 0.0));
  }
  auto open = best_first(groups);
  open.resize(static_cast<size_t>(r.top_groups));
  PlainRoute result;
  for (const int64_t e : best_first(choice))
    if (static_cast<int64_t>(result.experts.size()) < r.top_k &&
        std::count(open.begin(), open.end(), e / size))
      result.experts.push_back(e);
  for (int64_t e = routed; e < total; ++e) result.experts.push_back(e);
  double chosen = r.normalise ? r.normalise_eps : 0;
  if (r.normalise)
    for (const int64_t e : result.experts) chosen += s[e];
  for (const int64_t e : result.experts)
    result.weights.push_back(r.scale * s[e] / (r.normalise ? chosen : 1));
  return result;
}

std::vector<Router> routers() {
  return {{.top_k = 3},
          {.top_k = 2, .normalise = false},
          {.scores = Router::Scores::sigmoid, .top_k = 4, .normalise_eps = 1e-2, .scale = 2.5},
          {.scores = Router::Scores::sigmoid,
           .top_k = 3,
           .groups = 4,
           .top_groups = 2,
           .choice_bias = normal({12}, 3)},
          {.scores = Router::Scores::sigmoid,
           .top_k = 2,
           .groups = 6,
           .top_groups = 1,
           .choice_bias = -normal({12}, 4).abs() - 1},
          {.scores = Router::Scores::sigmoid,
           .top_k = 2,
           .always = 3,
           .scale = 0.5,
           .choice_bias = normal({9}, 5)},
          {.top_k = 2,
           .normalise = false,
           .groups = 3,
           .top_groups = 2,
           .group_best = 1,
           .choice_bias = normal({12}, 6)},
          {.top_k = 12}};
}

TEST(Moe, RoutesAreThoseOfTheDefinition) {
  const auto logits = normal({17, 12}, 1) * 2;
  for (auto router : routers()) {
    const auto routes = route(logits, router);
    for (int64_t n = 0; n < logits.size(0); ++n) {
      const auto values = [](const at::Tensor& x) {
        return x.defined() ? Row(x.const_data_ptr<double>(), x.const_data_ptr<double>() + x.numel()) : Row();
      };
      const auto expected = plain_route(values(logits[n].contiguous()), router, values(router.choice_bias));
      std::vector<int64_t> order(expected.experts.size());
      for (size_t k = 0; k < order.size(); ++k) {
        EXPECT_EQ(routes.experts[n][static_cast<int64_t>(k)].item<int64_t>(), expected.experts[k]);
        EXPECT_NEAR(routes.weights[n][static_cast<int64_t>(k)].item<double>(), expected.weights[k], 1e-12);
      }
    }
  }
}

TEST(Moe, WeightsOfTinyScoresStillAddUp) {
  const auto logits = at::tensor({-800.0f, -801.0f, -900.0f}).unsqueeze(0);
  const auto weights = route(logits, {.scores = Router::Scores::sigmoid, .top_k = 2}).weights;
  EXPECT_NEAR(weights[0][0].item<double>(), 1 / (1 + std::exp(-1.0)), 1e-4);
  EXPECT_NEAR(weights.sum().item<double>(), 1, 1e-6);
}

TEST(Moe, RouteGradients) {
  for (const auto& router : routers())
    expect_finite_differences([&](const TensorList& t) { return TensorList{route(t[0], router).weights}; },
                              {normal({5, 12}, 1)});
}

// x, logits, up, down -> y
TensorFunction mixture(const Router& router, Activation activation, bool gated) {
  return [=](const TensorList& t) {
    return TensorList{mix_experts(t[0], route(t[1], router), {t[2], t[3], activation, gated})};
  };
}

TEST(Moe, MatchesReference) {
  const Router router{.top_k = 2};
  for (const bool gated : {true, false})
    for (const int64_t tokens : {0, 1, 2, 7, 63}) {
      const auto f = mixture(router, gated ? Activation::silu : Activation::relu2, gated);
      const TensorList inputs{normal({tokens, 10}, 1), normal({tokens, 5}, 2),
                              normal({5, gated ? 12 : 6, 10}, 3), normal({5, 10, 6}, 4)};
      {
        const auto grouped = outputs_and_gradients(f, inputs);
        const ForceKernel force(Kernel::reference);
        const auto dense = outputs_and_gradients(f, inputs);
        for (size_t i = 0; i < dense.size(); ++i)
          EXPECT_LE(relative_error(grouped[i], dense[i]), 1e-12) << tokens;
      }
      expect_matches_reference(f, inputs, at::kFloat, 1e-5);
    }
}

// The choice of experts is the same in both, so that only the products differ.
TEST(Moe, NarrowTypes) {
  const Routes routes = route(normal({40, 5}, 2), {.top_k = 3});
  const auto f = [&](const TensorList& t) {
    const auto device = t[0].device();
    return TensorList{
        mix_experts(t[0], {routes.experts.to(device), routes.weights.to(device, at::kFloat)}, {t[1], t[2]})};
  };
  const TensorList inputs{normal({40, 16}, 1), normal({5, 24, 16}, 3) / 4, normal({5, 16, 12}, 4) / 4};
  expect_matches_reference(f, inputs, at::kBFloat16, 2e-2);
  expect_matches_reference(f, inputs, at::kHalf, 2e-2);
}

TEST(Moe, Gradients) {
  for (const auto& router :
       {Router{.top_k = 2}, Router{.scores = Router::Scores::sigmoid, .top_k = 1, .always = 1}})
    expect_finite_differences(
        mixture(router, Activation::gelu, true),
        {normal({6, 4}, 1), normal({6, 3}, 2), normal({3, 10, 4}, 3), normal({3, 4, 5}, 4)});
}

TEST(Moe, ExpertsMayHaveAnotherWidthOfOutput) {
  const auto y = mix_experts(normal({3, 4}, 1), route(normal({3, 2}, 2), {.top_k = 1}),
                             {normal({2, 6, 4}, 3), normal({2, 5, 3}, 4)});
  EXPECT_EQ(y.sizes(), (std::vector<int64_t>{3, 5}));
}

TEST(Moe, ErrorsNameWhatIsWrong) {
  const auto logits = at::zeros({2, 6});
  EXPECT_EQ(error_text([&] { route(logits, {.groups = 4}); }),
            "route: 6 experts do not fall into 4 equal groups");
  EXPECT_EQ(error_text([&] { route(logits, {.top_k = 4, .groups = 3, .top_groups = 1}); }),
            "route: 4 experts are to be chosen from 2");
  EXPECT_EQ(error_text([&] {
              mix_experts(at::zeros({2, 3}), route(logits, {}), {at::zeros({6, 4, 3}), at::zeros({6, 3, 4})});
            }),
            "mix_experts: down is [6, 3, 4], expected [6, -1, 2]");
}

}  // namespace
}  // namespace weft::ops
