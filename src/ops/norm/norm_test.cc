#include "ops/norm/norm.h"

#include <ATen/core/dispatch/Dispatcher.h>

#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/norm/norm_cases.h"
#include "ops/reference_check.h"

namespace weft::ops {
namespace {

constexpr double kEps = 1e-5;

struct Variant {
  const char* name;
  TensorFunction run;         // inputs: x, gate, weight, bias (some do not use all)
  std::vector<size_t> takes;  // which of the four
};

std::vector<Variant> variants(double eps) {
  return {
      {"rms", [=](const TensorList& t) { return TensorList{rms_norm(t[0], t[1], eps)}; }, {0, 2}},
      {"rms without weight", [=](const TensorList& t) { return TensorList{rms_norm(t[0], {}, eps)}; }, {0}},
      {"add, rms",
       [=](const TensorList& t) {
         const auto r = add_rms_norm(t[0], t[1], t[2], eps);
         return TensorList{r.sum, r.y};
       },
       {0, 1, 2}},
      {"add, rms without weight",
       [=](const TensorList& t) { return TensorList{add_rms_norm(t[0], t[1], {}, eps).y}; },
       {0, 1}},
      {"gated before",
       [=](const TensorList& t) { return TensorList{gated_rms_norm(t[0], t[1], t[2], eps, false)}; },
       {0, 1, 2}},
      {"gated after",
       [=](const TensorList& t) { return TensorList{gated_rms_norm(t[0], t[1], t[2], eps, true)}; },
       {0, 1, 2}},
      {"gated, no weight",
       [=](const TensorList& t) { return TensorList{gated_rms_norm(t[0], t[1], {}, eps, true)}; },
       {0, 1}},
      {"layer",
       [=](const TensorList& t) { return TensorList{layer_norm(t[0], t[1], t[2], eps)}; },
       {0, 2, 3}},
      {"layer without bias",
       [=](const TensorList& t) { return TensorList{layer_norm(t[0], t[1], {}, eps)}; },
       {0, 2}},
      {"layer alone", [=](const TensorList& t) { return TensorList{layer_norm(t[0], {}, {}, eps)}; }, {0}},
      {"l2", [=](const TensorList& t) { return TensorList{l2_norm(t[0], eps)}; }, {0}},
  };
}

TensorList inputs_for(const Variant& variant, const NormCase& c) {
  const TensorList all = {normal({c.rows, c.width}, 1) + 0.5, normal({c.rows, c.width}, 2) * 3,
                          normal({c.width}, 3) + 1, normal({c.width}, 4)};
  TensorList chosen;
  for (const size_t i : variant.takes) chosen.push_back(all[i]);
  return chosen;
}

TEST(Norm, MatchesReference) {
  const NormBounds bounds;
  for (const auto& c : norm_cases())
    for (const auto& variant : variants(c.eps)) {
      SCOPED_TRACE(fmt::format("{}, {} rows of {}", variant.name, c.rows, c.width));
      const auto inputs = inputs_for(variant, c);
      // The layer norm of one number is 0 times its weight: nothing to measure an error against.
      if (c.width == 1 && std::string_view(variant.name).starts_with("layer")) continue;
      expect_matches_reference(variant.run, inputs, at::kFloat, bounds.fp32);
      if (c.rows > 100) continue;
      expect_matches_reference(variant.run, inputs, at::kBFloat16, bounds.half);
      expect_matches_reference(variant.run, inputs, at::kHalf, bounds.half);
    }
}

TEST(Norm, ReferenceGradients) {
  for (const auto& variant : variants(kEps)) {
    SCOPED_TRACE(variant.name);
    expect_finite_differences(variant.run, inputs_for(variant, {4, 5}));
  }
}

TEST(Norm, SameForAnyNumberOfThreads) {
  for (const auto& variant : variants(kEps)) {
    SCOPED_TRACE(variant.name);
    TensorList inputs;
    for (const auto& x : inputs_for(variant, {2000, 70})) inputs.push_back(x.to(at::kFloat));
    expect_same_for_threads(variant.run, inputs);
  }
}

TEST(Norm, KnownValues) {
  const auto x = at::tensor({3.0f, 4.0f});
  EXPECT_LE(relative_error(l2_norm(x, 0), at::tensor({0.6, 0.8})), 1e-6);
  EXPECT_LE(
      relative_error(rms_norm(x, at::tensor({1.0f, 2.0f}), 0), at::tensor({0.8485281374, 2.2627416998})),
      1e-6);
  EXPECT_LE(relative_error(layer_norm(x, {}, at::tensor({1.0f, 1.0f}), 0), at::tensor({0.0, 2.0})), 1e-6);
}

TEST(Norm, FewerDimensionsAndOtherStrides) {
  const auto x = normal({6, 3, 10}, 1).to(at::kFloat);
  const auto view = x.transpose(0, 1);
  EXPECT_LE(relative_error(rms_norm(view, {}, kEps), rms_norm(x, {}, kEps).transpose(0, 1)), 1e-7);
  EXPECT_LE(relative_error(l2_norm(x[0][0], kEps), l2_norm(x, kEps)[0][0]), 1e-7);
}

TEST(Norm, MixedTypes) {
  const auto x = normal({4, 12}, 1).to(at::kBFloat16),
             weight = normal({12}, 2).to(at::kFloat).requires_grad_();
  const auto y = rms_norm(x, weight, kEps);
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  y.sum().backward();
  EXPECT_EQ(weight.grad().scalar_type(), at::kFloat);
}

TEST(Norm, SumInTheWiderType) {
  const auto x = normal({4, 12}, 1).to(at::kFloat).requires_grad_();
  const auto branch = normal({4, 12}, 2).to(at::kBFloat16).requires_grad_();
  const auto r = add_rms_norm(x, branch, {}, kEps);
  EXPECT_EQ(r.sum.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::equal(r.sum, x + branch));
  EXPECT_TRUE(at::equal(r.y, rms_norm(r.sum, {}, kEps)));
  (r.sum * normal({4, 12}, 3).to(at::kFloat)).sum().backward();  // y has no gradient
  EXPECT_EQ(branch.grad().scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::equal(branch.grad(), x.grad().to(at::kBFloat16)));
}

TEST(Norm, NotANumberStaysOne) {
  auto x = normal({2, 9}, 1).to(at::kFloat);
  x[0][3] = std::nan("");
  const auto gate = at::ones_like(x);
  for (const bool after : {false, true}) {
    const auto y = gated_rms_norm(x, gate, {}, kEps, after);
    EXPECT_TRUE(y[0].isnan().all().item<bool>());
    EXPECT_FALSE(y[1].isnan().any().item<bool>());
    EXPECT_TRUE(gated_rms_norm(gate, x, {}, kEps, after)[0].isnan().any().item<bool>());
  }
}

TEST(Norm, ErrorsNameWhatIsWrong) {
  const auto x = at::zeros({2, 8});
  EXPECT_EQ(error_text([&] { rms_norm(x, at::zeros({7}), kEps); }), "rms_norm: weight is [7], expected [8]");
  EXPECT_EQ(error_text([&] {
              layer_norm(x, {}, at::zeros({1, 8}), kEps);
            }),
            "layer_norm: bias is [1, 8], expected [8]");
  EXPECT_EQ(error_text([&] {
              gated_rms_norm(x, at::zeros({2, 4}), {}, kEps, true);
            }),
            "gated_rms_norm: gate is [2, 4], expected [2, 8]");
  EXPECT_EQ(error_text([&] { l2_norm(at::zeros({2}, at::kLong), kEps); }),
            "l2_norm: x has type Long, expected a floating type");
}

TEST(Norm, CallableAsOperator) {
  using Optional = std::optional<at::Tensor>;
  auto& operators = c10::Dispatcher::singleton();
  const auto x = normal({2, 8}, 1).to(at::kFloat), weight = normal({8}, 2).to(at::kFloat);
  const auto rms = operators.findSchemaOrThrow("weft::rms_norm", "")
                       .typed<at::Tensor(const at::Tensor&, const Optional&, double)>();
  EXPECT_TRUE(at::equal(rms.call(x, weight, kEps), rms_norm(x, weight, kEps)));
  EXPECT_TRUE(at::equal(rms.call(x, std::nullopt, kEps), rms_norm(x, {}, kEps)));
  for (const char* name : {"weft::add_rms_norm", "weft::gated_rms_norm", "weft::layer_norm", "weft::l2_norm"})
    EXPECT_TRUE(operators.findSchema({name, ""}).has_value()) << name;
}

}  // namespace
}  // namespace weft::ops
