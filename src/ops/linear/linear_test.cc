#include "ops/linear/linear.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "ops/activation/activation.h"
#include "ops/reference_check.h"

namespace weft::ops {
namespace {

struct Kind {
  at::ScalarType type;
  double bound;
};
const std::vector<Kind> kKinds{{at::kFloat, 1e-5}, {at::kBFloat16, 2e-2}, {at::kHalf, 2e-2}};

// x, then weights and, last, a bias.
using Function = std::function<TensorList(const at::Tensor& x, const TensorList& rest)>;

// fn without gradients, as in decoding, on every device of this machine against itself in fp64.
void expect_matches(const Function& fn, const at::Tensor& x, const TensorList& rest,
                    const std::string& what) {
  const at::NoGradGuard no_grad;
  for (const auto& [type, bound] : kKinds) {
    TensorList wide;
    for (const auto& y : rest) wide.push_back(y.to(type).to(at::kDouble));
    const auto expected = fn(x.to(type).to(at::kDouble), wide);
    for (const Kernel kernel : runnable_kernels()) {
      const ForceKernel force(kernel);
      const PoisonedMemory poisoned;
      TensorList there;
      for (const auto& y : rest) there.push_back(y.to(type).to(device_of(kernel)));
      const auto found = fn(x.to(type).to(device_of(kernel)), there);
      ASSERT_EQ(found.size(), expected.size());
      for (size_t i = 0; i < found.size(); ++i) {
        EXPECT_EQ(found[i].sizes(), expected[i].sizes());
        EXPECT_EQ(found[i].scalar_type(), type);
        EXPECT_LE(relative_error(found[i], expected[i]), bound)
            << what << ", " << kernel_name(kernel) << ", " << c10::toString(type) << ", output " << i;
      }
    }
  }
}

TEST(Linear, FewAndManyRows) {
  for (const int64_t rows : {0, 1, 2, 3, 5, 8, 9})
    for (const int64_t width : {8, 24, 1288, 2100}) {
      const auto x = normal({rows, 1, width}, 1);
      const TensorList weights{normal({33, width}, 2) / 10, normal({6, width}, 3) / 10,
                               normal({1, width}, 4) / 10};
      expect_matches([](const at::Tensor& in, const TensorList& w) { return ops::linear(in, w); }, x, weights,
                     fmt::format("{} rows of {}", rows, width));
    }
}

TEST(Linear, Bias) {
  const auto with_bias = [](const at::Tensor& x, const TensorList& rest) {
    return TensorList{ops::linear(x, rest[0], rest[1])};
  };
  for (const int64_t rows : {1, 3, 40})
    expect_matches(with_bias, normal({rows, 64}, 1), {normal({70, 64}, 2), normal({70}, 3)}, "bias");
}

TEST(Linear, SwiGlu) {
  const auto hidden = [](const at::Tensor& x, const TensorList& rest) {
    return TensorList{swiglu(x, rest[0], rest[1])};
  };
  for (const int64_t rows : {1, 2, 8, 11})
    expect_matches(hidden, normal({rows, 1, 128}, 1), {normal({70, 128}, 2) / 8, normal({70, 128}, 3) / 8},
                   "SwiGLU");
}

TEST(Linear, Gradients) {
  const auto both = [](const TensorList& t) {
    auto out = ops::linear(t[0], {t[1], t[2]});
    out.push_back(swiglu(t[0], t[1], t[1]));
    return out;
  };
  const TensorList inputs{normal({2, 3, 5}, 1), normal({4, 5}, 2), normal({7, 5}, 3)};
  expect_finite_differences(both, inputs);
  expect_matches_reference(both, inputs, at::kFloat, 1e-5);
}

TEST(Linear, WeightsAreCast) {
  const auto x = normal({1, 16}, 1).to(at::kBFloat16), weight = normal({3, 16}, 2).to(at::kFloat);
  EXPECT_TRUE(at::equal(ops::linear(x, weight, {}), ops::linear(x, weight.to(at::kBFloat16), {})));
}

TEST(Linear, ErrorsNameWhatIsWrong) {
  EXPECT_EQ(error_text([] {
              ops::linear(at::zeros({2, 3}), at::zeros({4, 5}), {});
            }),
            "linear: weight is [4, 5], expected [-1, 3]");
  EXPECT_EQ(error_text([] {
              ops::linear(at::zeros({2, 3}), at::zeros({4, 3}), at::zeros({1}));
            }),
            "linear: bias is [1], expected [4]");
}

}  // namespace
}  // namespace weft::ops
