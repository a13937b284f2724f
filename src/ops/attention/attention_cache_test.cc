// Keys and values of 16 and 8 bits, few queries against many keys.
#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/attention/attention.h"
#include "ops/attention/attention_cases.h"
#include "ops/reference_check.h"

namespace weft::ops {
namespace {

struct CacheCase {
  const char* name;
  int64_t batch, queries, keys, heads, key_heads, key_width, value_width;
  Mask mask = {};
};

std::vector<CacheCase> cache_cases() {
  const auto ring = [](int64_t batch, int64_t keys, int64_t now) {
    auto positions = at::arange(keys).flip(0) + (now - keys + 1);
    positions = at::where(at::arange(keys).remainder(5) == 2, -1, positions);
    return positions.expand({batch, keys}).contiguous();
  };
  Mask windowed{.window = 40, .sinks = 2};
  windowed.q_positions = at::full({2, 1}, 300, at::kLong);
  windowed.k_positions = ring(2, 130, 300);
  return {{"no keys", 2, 1, 0, 2, 1, 8, 8},
          {"one key", 1, 1, 1, 4, 2, 32, 32},
          {"63", 2, 1, 63, 4, 2, 16, 24},
          {"64", 1, 2, 64, 4, 2, 32, 16},
          {"65, odd widths", 1, 3, 65, 2, 2, 17, 31},
          {"more than a split", 1, 1, 513, 8, 2, 64, 64},
          {"several splits", 2, 1, 1500, 3, 1, 16, 40},
          {"rows of the grouped heads", 1, 5, 700, 3, 1, 24, 24},
          {"window in a ring", 2, 1, 130, 4, 4, 16, 16, windowed},
          {"prefill", 2, 70, 300, 4, 2, 32, 24},
          {"tree", 2, 9, 109, 2, 1, 16, 16,
           tree_mask(at::tensor({-1, 0, 0, 1, 1, 2, -1, 6, 3}, at::kLong).expand({2, 9}),
                     at::tensor({100, 64}, at::kLong), 100)}};
}

TensorList inputs_for(const CacheCase& c) {
  return {normal({c.batch, c.queries, c.heads, c.key_width}, 1),
          normal({c.batch, c.keys, c.key_heads, c.key_width}, 2),
          normal({c.batch, c.keys, c.key_heads, c.value_width}, 3)};
}

void expect_close(const AttentionResult& found, const AttentionResult& expected, double bound) {
  EXPECT_LE(relative_error(found.out, expected.out), bound);
  EXPECT_LE(relative_error(found.lse, expected.lse), bound);
}

TEST(AttentionCache, SixteenBitKeysWithWideQueries) {
  for (const auto& c : cache_cases())
    for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const auto in = inputs_for(c);
      const auto q = in[0].to(at::kFloat), k = in[1].to(type), v = in[2].to(type);
      const auto expected =
          reference::attention(q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble), c.mask);
      for (const Kernel kernel : runnable_kernels()) {
        SCOPED_TRACE(fmt::format("{}, {}, {}", c.name, c10::toString(type), kernel_name(kernel)));
        const ForceKernel force(kernel);
        const PoisonedMemory poisoned;
        const at::Device device = device_of(kernel);
        const auto r = attention(q.to(device), k.to(device), v.to(device), on_device(c.mask, device));
        EXPECT_EQ(r.out.scalar_type(), at::kFloat);
        expect_close(r, expected, AttentionBounds().fp32);
      }
    }
}

TEST(AttentionCache, EightBitKeys) {
  for (const auto& c : cache_cases())
    for (const int64_t group : {0, 8}) {
      if (group > 0 && (c.key_width % group || c.value_width % group)) continue;
      const auto in = inputs_for(c);
      const auto q = in[0].to(at::kFloat);
      const auto k = quantize_rows(in[1].to(at::kFloat), group),
                 v = quantize_rows(in[2].to(at::kFloat), group);
      const AttentionOptions options{.softcap = 4, .k_scale = k.scale, .v_scale = v.scale};
      const auto expected = reference::attention(q.to(at::kDouble), dequantize_rows(k, at::kDouble),
                                                 dequantize_rows(v, at::kDouble), c.mask, {.softcap = 4});
      expect_close(reference::attention(q.to(at::kDouble), k.values, v.values, c.mask, options), expected,
                   1e-12);
      for (const Kernel kernel : runnable_kernels()) {
        SCOPED_TRACE(fmt::format("{}, group {}, {}", c.name, group, kernel_name(kernel)));
        const ForceKernel force(kernel);
        const PoisonedMemory poisoned;
        const at::Device device = device_of(kernel);
        const AttentionOptions there{
            .softcap = 4, .k_scale = k.scale.to(device), .v_scale = v.scale.to(device)};
        expect_close(attention(q.to(device), k.values.to(device), v.values.to(device),
                               on_device(c.mask, device), there),
                     expected, AttentionBounds().fp32);
      }
    }
}

// 16-bit queries, where a GPU splits the keys and uses its tensor cores.
TEST(AttentionCache, NarrowQueries) {
  for (const auto& c : cache_cases())
    for (const auto type : {at::kBFloat16, at::kHalf})
      for (const bool int8 : {false, true}) {
        const auto in = inputs_for(c);
        const auto q = in[0].to(type), k = in[1].to(type), v = in[2].to(type);
        const auto k8 = quantize_rows(k), v8 = quantize_rows(v);
        const auto wide = [&](const at::Tensor& x, const QuantizedRows& rows) {
          return int8 ? dequantize_rows(rows, at::kDouble) : x.to(at::kDouble);
        };
        const auto expected = reference::attention(q.to(at::kDouble), wide(k, k8), wide(v, v8), c.mask);
        for (const Kernel kernel : runnable_kernels()) {
          SCOPED_TRACE(
              fmt::format("{}, {}, int8 {}, {}", c.name, c10::toString(type), int8, kernel_name(kernel)));
          const ForceKernel force(kernel);
          const PoisonedMemory poisoned;
          const at::Device device = device_of(kernel);
          AttentionOptions options;
          if (int8) options = {.k_scale = k8.scale.to(device), .v_scale = v8.scale.to(device)};
          expect_close(attention(q.to(device), (int8 ? k8.values : k).to(device),
                                 (int8 ? v8.values : v).to(device), on_device(c.mask, device), options),
                       expected, AttentionBounds().half);
        }
      }
}

TEST(AttentionCache, GradientOfQueriesWithEightBitKeys) {
  const CacheCase c{"", 2, 70, 90, 4, 2, 16, 24};
  const auto in = inputs_for(c);
  const auto k = quantize_rows(in[1].to(at::kFloat)), v = quantize_rows(in[2].to(at::kFloat));
  const auto fn = [&](const TensorList& t) {
    const at::Device device = t[0].device();
    const auto r = attention(t[0], k.values.to(device), v.values.to(device), {},
                             {.k_scale = k.scale.to(device), .v_scale = v.scale.to(device)});
    return TensorList{r.out, r.lse};
  };
  expect_matches_reference(fn, {in[0]}, at::kFloat, AttentionBounds().fp32);
}

TEST(AttentionCache, SplitsDoNotDependOnThreads) {
  const CacheCase c{"", 2, 2, 3000, 4, 2, 32, 32};
  TensorList inputs;
  for (const auto& x : inputs_for(c)) inputs.push_back(x.to(at::kFloat));
  const auto fn = [&](const TensorList& t) {
    const auto r = attention(t[0], t[1], t[2], c.mask);
    return TensorList{r.out, r.lse};
  };
  expect_same_for_threads(fn, inputs);
}

// Layouts of a cache are read where they stand.
TEST(AttentionCache, AnyStrides) {
  const CacheCase c{"", 2, 1, 200, 4, 2, 16, 16};
  const auto in = inputs_for(c);
  const auto q = in[0].to(at::kFloat), k = in[1].to(at::kHalf), v = in[2].to(at::kHalf);
  const auto by_head = [](const at::Tensor& x) { return x.transpose(1, 2).contiguous().transpose(1, 2); };
  const auto expected = attention(q, k, v, {});
  const auto turned = attention(q, by_head(k), by_head(v), {});
  EXPECT_TRUE(at::equal(turned.out, expected.out));
  const auto longer = at::cat({k, k}, 1).narrow(1, 0, 200);
  EXPECT_TRUE(at::equal(attention(q, longer, v, {}).out, expected.out));
}

TEST(AttentionCache, NotANumberReachesTheOutput) {
  const CacheCase c{"", 1, 1, 700, 2, 1, 16, 16};
  auto in = inputs_for(c);
  for (auto& x : in) x = x.to(at::kFloat);
  in[1][0][600][0][3] = std::nan("");
  const auto r = attention(in[0], in[1], in[2], {});
  EXPECT_TRUE(r.out.isnan().all().item<bool>());
  EXPECT_TRUE(r.lse.isnan().all().item<bool>());
}

TEST(AttentionCache, QuantizedRows) {
  const auto x = normal({3, 5, 24}, 1);
  for (const int64_t group : {0, 8, 1}) {
    const auto rows = quantize_rows(x, group);
    const auto error = (dequantize_rows(rows, at::kDouble) - x).abs();
    const auto half =
        rows.scale.to(at::kDouble).repeat_interleave(24 / rows.scale.size(-1), -1) * (0.5 + 1e-5);
    EXPECT_TRUE((error <= half).all().item<bool>());
    EXPECT_EQ(rows.values.abs().amax().item<int8_t>(), 127);
  }
  const auto zero = quantize_rows(at::zeros({2, 8}));
  EXPECT_TRUE(at::equal(dequantize_rows(zero, at::kFloat), at::zeros({2, 8})));
  EXPECT_EQ(error_text([&] { quantize_rows(x, 7); }),
            "quantize_rows: group is 7, expected a divisor of the width 24");
}

TEST(AttentionCache, ErrorsNameWhatIsWrong) {
  const auto q = at::zeros({1, 1, 2, 8}), k = at::zeros({1, 6, 2, 8}), k8 = k.to(at::kChar),
             scale = at::ones({1, 6, 2, 1});
  EXPECT_EQ(error_text([&] { attention(q, k8, k, {}); }),
            "attention: k has type Char and v Float; int8 only together");
  EXPECT_NE(error_text([&] { attention(q, k8, k8, {}); }).find("k_scale is missing"), std::string::npos);
  EXPECT_EQ(error_text([&] {
              attention(q, k8, k8, {}, {.k_scale = at::ones({1, 6, 2, 3}), .v_scale = scale});
            }),
            "attention: k_scale is [1, 6, 2, 3]; its last size must divide the width 8");
  EXPECT_EQ(error_text([&] {
              attention(q, k8, k8, {}, {.k_scale = at::ones({1, 5, 2, 1}), .v_scale = scale});
            }),
            "attention: k_scale is [1, 5, 2, 1], expected [1, 6, 2, -1]");
}

}  // namespace
}  // namespace weft::ops
