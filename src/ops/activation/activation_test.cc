#include "ops/activation/activation.h"

#include <gtest/gtest.h>

#include "ops/reference_check.h"

namespace weft::ops {
namespace {

TensorList silu_mul_of(const TensorList& t) { return {silu_mul(t[0], t[1])}; }

TEST(Activation, MatchesReference) {
  for (const int64_t size : {0, 1, 7, 8, 63, 1000}) {
    const TensorList inputs{normal({3, size}, 1) * 4, normal({3, size}, 2)};
    expect_matches_reference(silu_mul_of, inputs, at::kFloat, 1e-5);
    expect_matches_reference(silu_mul_of, inputs, at::kBFloat16, 1e-2);
    expect_matches_reference(silu_mul_of, inputs, at::kHalf, 1e-2);
  }
}

TEST(Activation, ReferenceGradients) {
  expect_finite_differences(silu_mul_of, {normal({3, 5}, 1), normal({3, 5}, 2)});
}

TEST(Activation, SameForAnyNumberOfThreads) {
  expect_same_for_threads(silu_mul_of,
                          {normal({900, 71}, 1).to(at::kFloat), normal({900, 71}, 2).to(at::kFloat)});
}

TEST(Activation, ExtremesAndStrides) {
  const auto gate = at::tensor({-200.0f, 200.0f, 0.0f, std::nanf("")}),
             x = at::tensor({1.0f, 2.0f, 3.0f, 4.0f});
  for (const Kernel kernel : cpu_kernels()) {
    const ForceKernel force(kernel);
    const auto y = silu_mul(gate, x);
    EXPECT_NEAR(y[0].item<float>(), 0, 1e-30) << kernel_name(kernel);
    EXPECT_EQ(y[1].item<float>(), 400);
    EXPECT_EQ(y[2].item<float>(), 0);
    EXPECT_TRUE(std::isnan(y[3].item<float>()));
  }
  const auto a = normal({6, 10}, 1).to(at::kFloat), b = normal({10, 6}, 2).to(at::kFloat);
  EXPECT_TRUE(at::equal(silu_mul(a, b.t()), silu_mul(a, b.t().contiguous())));
  EXPECT_EQ(silu_mul(a.to(at::kBFloat16), a).scalar_type(), at::kFloat);
}

TEST(Activation, ErrorsNameWhatIsWrong) {
  EXPECT_EQ(error_text([] {
              silu_mul(at::zeros({2, 3}), at::zeros({2, 4}));
            }),
            "silu_mul: gate is [2, 3], expected [2, 4]");
}

}  // namespace
}  // namespace weft::ops
