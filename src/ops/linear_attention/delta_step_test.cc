// A whole token of Gated DeltaNet against the same in fp64, over several tokens.
#include "ops/linear_attention/delta_step.h"

#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include "ops/linear_attention/linear_attention_cases.h"
#include "ops/reference_check.h"

namespace weft::ops {
namespace {

struct Sizes {
  int64_t batch, key_heads, heads, key_width, value_width, taps;
  bool gate;
};

constexpr int kTokens = 3;

// What a step reads and is left with after kTokens: all read-outs, the state and that of the convolution.
TensorList after_tokens(const Sizes& s, at::ScalarType type, c10::DeviceType device, at::ScalarType rounded) {
  const int64_t channels = 2 * s.key_heads * s.key_width + s.heads * s.value_width;
  const auto as = [&](const at::Tensor& x) { return x.to(rounded).to(type).to(device); };
  const auto wide = type == at::kDouble ? at::kDouble : at::kFloat;
  const auto parameter = [&](const at::Tensor& x) { return x.to(at::kFloat).to(wide).to(device); };
  DeltaStep in{.key_heads = s.key_heads};
  in.conv_weight = parameter(normal({channels, s.taps}, 1));
  in.conv_state = as(normal({s.batch, s.taps - 1, channels}, 2));
  in.beta_scale = s.gate ? 1 : 2;
  in.a_log = parameter(normal({s.heads}, 3)), in.dt_bias = parameter(normal({s.heads}, 4));
  in.state = parameter(normal({s.batch, s.heads, s.key_width, s.value_width}, 5));
  in.norm_weight = parameter(normal({s.value_width}, 6));
  TensorList out;
  for (int t = 0; t < kTokens; ++t) {
    const auto seed = static_cast<uint64_t>(10 * t);
    in.x = as(normal({s.batch, 1, channels}, seed + 11));
    in.beta = as(normal({s.batch, 1, s.heads}, seed + 12));
    in.decay = as(normal({s.batch, 1, s.heads}, seed + 13));
    if (s.gate) in.gate = as(normal({s.batch, 1, s.heads * s.value_width}, seed + 14));
    out.push_back(delta_step(in));
  }
  out.push_back(in.state);
  out.push_back(in.conv_state);
  return out;
}

void expect_matches(const Sizes& s) {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const auto expected = after_tokens(s, at::kDouble, at::kCPU, type);
    const double bound = linear_attention_bounds(type).y;
    for (const Kernel kernel : runnable_kernels()) {
      const ForceKernel force(kernel);
      const PoisonedMemory poisoned;
      const auto found = after_tokens(s, type, device_of(kernel), type);
      for (size_t i = 0; i < found.size(); ++i)
        EXPECT_LE(relative_error(found[i], expected[i]), bound)
            << kernel_name(kernel) << ", " << c10::toString(type) << ", result " << i << ", batch " << s.batch
            << ", " << s.heads << " heads of " << s.key_width << "x" << s.value_width;
    }
  }
}

TEST(DeltaStep, Heads) {
  expect_matches({1, 6, 6, 128, 128, 4, true});
  expect_matches({3, 2, 4, 128, 128, 4, true});
  expect_matches({2, 1, 8, 64, 32, 3, true});
  expect_matches({2, 2, 2, 64, 64, 2, false});
}

TEST(DeltaStep, ManySequences) {
  expect_matches({70, 4, 4, 128, 128, 4, true});
  expect_matches({50, 2, 8, 64, 64, 4, false});
}

TEST(DeltaStep, OtherWidths) {
  expect_matches({2, 2, 2, 24, 40, 4, true});
  expect_matches({1, 2, 2, 128, 256, 4, true});
  expect_matches({1, 1, 1, 64, 64, 5, true});
}

TEST(DeltaStep, ErrorsNameWhatIsWrong) {
  EXPECT_EQ(error_text([] {
              delta_step({.key_heads = 1, .x = at::zeros({2, 3, 4})});
            }),
            "delta_step: x is [2, 3, 4], expected [batch, 1, channels]");
}

}  // namespace
}  // namespace weft::ops
