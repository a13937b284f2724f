#include "ops/attention/attention.h"

#include <c10/core/GradMode.h>

#include <ATen/core/dispatch/Dispatcher.h>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/error.h"
#include "ops/attention/attention_cases.h"
#include "ops/reference_check.h"

namespace weft::ops {
namespace {

constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

// Inputs q, k, v; outputs out and lse.
TensorFunction attend(const Mask& mask, double scale = 0) {
  return [=](const TensorList& t) {
    const auto r = attention(t[0], t[1], t[2], on_device(mask, t[0].device()), {.scale = scale});
    return TensorList{r.out, r.lse};
  };
}

TensorList inputs_for(const AttentionCase& c) {
  return {normal({c.batch, c.queries, c.heads, c.key_width}, 1),
          normal({c.batch, c.keys, c.key_heads, c.key_width}, 2),
          normal({c.batch, c.keys, c.key_heads, c.value_width}, 3)};
}

AttentionCase plain(int64_t tokens) { return {"", 2, tokens, tokens, 4, 2, 16, 24}; }

TensorList in_fp32(const TensorList& list) {
  TensorList result;
  for (const auto& x : list) result.push_back(x.to(at::kFloat));
  return result;
}

std::vector<Kernel> kernels_and_reference() {
  auto kernels = runnable_kernels();
  kernels.push_back(Kernel::reference);
  return kernels;
}

TensorList on(Kernel kernel, const TensorList& list) {
  TensorList result;
  for (const auto& x : list) result.push_back(x.to(device_of(kernel)));
  return result;
}

// All results of two functions of the same inputs agree.
void expect_same(const TensorFunction& a, const TensorFunction& b, const TensorList& inputs,
                 double bound = 1e-5) {
  const auto left = outputs_and_gradients(a, inputs), right = outputs_and_gradients(b, inputs);
  ASSERT_EQ(left.size(), right.size());
  for (size_t i = 0; i < left.size(); ++i)
    EXPECT_LE(relative_error(left[i], right[i]), bound) << "result " << i;
}

TEST(Attention, MatchesReference) {
  const AttentionBounds bounds;
  for (const auto& c : attention_cases()) {
    SCOPED_TRACE(c.name);
    const auto fn = attend(mask_of(c), c.scale);
    expect_matches_reference(fn, inputs_for(c), at::kFloat, bounds.fp32);
    expect_matches_reference(fn, inputs_for(c), at::kBFloat16, bounds.half);
    expect_matches_reference(fn, inputs_for(c), at::kHalf, bounds.half);
  }
}

// Shapes that the tensor cores of a GPU take in whole and in ragged tiles.
TEST(Attention, WideShapesMatchReference) {
  const std::vector<AttentionCase> cases = {{"causal", 1, 257, 257, 2, 1, 128, 128},
                                            {"window", 2, 400, 400, 2, 2, 64, 64, true, 130, 3},
                                            {"cross, widths apart", 1, 150, 290, 4, 2, 128, 40, false},
                                            {"segments", 1, 390, 390, 1, 1, 128, 64, true, 0, 0, 4},
                                            {"heads of 256", 1, 140, 140, 2, 1, 256, 192},
                                            {"many rows of a group", 2, 9, 300, 8, 2, 64, 128},
                                            {"one query", 1, 1, 700, 4, 2, 128, 128},
                                            {"one query, sinks", 2, 1, 900, 4, 1, 64, 64, true, 300, 5},
                                            {"wide sinks", 1, 500, 500, 1, 1, 64, 64, true, 90, 140},
                                            {"rows without keys", 1, 300, 150, 2, 1, 64, 64},
                                            {"window, not causal", 1, 300, 420, 1, 1, 64, 64, false, 200}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    for (const auto type : {at::kBFloat16, at::kHalf})
      expect_matches_reference(attend(mask_of(c)), inputs_for(c), type, AttentionBounds().half);
  }
}

// Dense masks of 16-bit inputs, which a GPU may give to its library.
TEST(Attention, DenseMasksMatchReference) {
  for (const bool causal : {true, false}) {
    const AttentionCase c{"", 2, 200, 200, 2, 2, 64, 64, causal};
    TensorList narrow, wide;
    for (const auto& x : inputs_for(c))
      narrow.push_back(x.to(at::kBFloat16)), wide.push_back(narrow.back().to(at::kDouble));
    const auto out_alone = [&](const TensorList& t) { return TensorList{attend(mask_of(c))(t)[0]}; };
    const auto expected = outputs_and_gradients(attend(mask_of(c)), wide),
               expected_alone = outputs_and_gradients(out_alone, wide);
    for (const Kernel kernel : runnable_kernels()) {
      SCOPED_TRACE(kernel_name(kernel));
      const ForceKernel force(kernel);
      const auto both = outputs_and_gradients(attend(mask_of(c)), on(kernel, narrow)),
                 alone = outputs_and_gradients(out_alone, on(kernel, narrow));
      for (size_t i = 0; i < both.size(); ++i)
        EXPECT_LE(relative_error(both[i], expected[i]), AttentionBounds().half) << i;
      for (size_t i = 0; i < alone.size(); ++i)
        EXPECT_LE(relative_error(alone[i], expected_alone[i]), AttentionBounds().half) << i;
    }
  }
}

TEST(Attention, ReferenceGradients) {
  const std::vector<AttentionCase> cases = {{"causal", 2, 4, 4, 4, 2, 3, 2},
                                            {"ring", 1, 3, 6, 2, 1, 3, 2, true, 2, 1, 2, true},
                                            {"no key for some", 1, 5, 3, 1, 1, 2, 2}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    const auto mask = mask_of(c);
    // Where no key is seen lse is -inf, which has no difference quotient.
    const auto fn = [&](const TensorList& t) {
      const auto r = attention(t[0], t[1], t[2], mask);
      return TensorList{r.out, r.lse.masked_fill(r.lse == kMinusInfinity, 0)};
    };
    expect_finite_differences(fn, inputs_for(c));
  }
}

// The definition for one query in words: no tensor operation in common with either implementation.
TEST(Attention, KnownValues) {
  const auto q = at::tensor({1.0f, 0.0f}).view({1, 1, 1, 2});
  const auto k = at::tensor({2.0f, 5.0f, -1.0f, 7.0f}).view({1, 2, 1, 2});
  const auto v = at::tensor({10.0f, 20.0f}).view({1, 2, 1, 1});
  const double a = std::exp(2 * 0.5), b = std::exp(-1 * 0.5);
  for (const Kernel kernel : kernels_and_reference()) {
    const ForceKernel force(kernel);
    const auto t = on(kernel, {q, k, v});
    const auto r = attention(t[0], t[1], t[2], {}, {.scale = 0.5});
    EXPECT_NEAR(r.out.item<double>(), (10 * a + 20 * b) / (a + b), 1e-5);
    EXPECT_NEAR(r.lse.item<double>(), std::log(a + b), 1e-6);
  }
}

// Every mask condition against its wording in the header, read off from which values change the output.
TEST(Attention, MaskMeansWhatItsWordsSay) {
  const AttentionCase c{"", 1, 60, 90, 1, 1, 4, 1, true, 11, 3, 3, true};
  const auto mask = mask_of(c);
  const auto inputs = in_fp32(inputs_for(c));
  const auto v = inputs[2].clone().requires_grad_();
  const auto out = attention(inputs[0], inputs[1], v, mask).out;
  for (int64_t t = 0; t < c.queries; t += 7) {
    const auto weight = torch::autograd::grad({out[0][t].sum()}, {v}, {}, true)[0].flatten();
    for (int64_t s = 0; s < c.keys; ++s) {
      const auto at_q = mask.q_positions[0][t].item<int64_t>(), at_k = mask.k_positions[0][s].item<int64_t>();
      const bool same = mask.q_segments[0][t].item<int64_t>() == mask.k_segments[0][s].item<int64_t>();
      const bool seen = at_k >= 0 && same && at_k <= at_q && (at_k > at_q - 11 || at_k < 3);
      EXPECT_EQ(weight[s].item<double>() > 0, seen) << t << " " << s;
    }
  }
}

TEST(Attention, GroupedQueriesEqualRepeatedKeys) {
  const auto c = plain(70);
  const auto repeated = [&](const TensorList& t) {
    return attend({})({t[0], t[1].repeat_interleave(2, 2), t[2].repeat_interleave(2, 2)});
  };
  expect_same(attend({}), repeated, in_fp32(inputs_for(c)));
}

TEST(Attention, OrderOfSlotsDoesNotMatter) {
  for (const int64_t window : {int64_t{0}, int64_t{9}}) {
    const auto c = plain(100);
    const auto slots =
        at::randperm(100, at::make_generator<at::CPUGeneratorImpl>(1), at::TensorOptions(at::kLong));
    Mask straight{.window = window, .sinks = 2}, ring = straight;
    ring.k_positions = slots.expand({2, 100});
    const auto shuffled = [&](const TensorList& t) {
      return attend(ring)({t[0], t[1].index_select(1, slots), t[2].index_select(1, slots)});
    };
    expect_same(attend(straight), shuffled, in_fp32(inputs_for(c)));
  }
}

TEST(Attention, WideWindowIsNoWindow) {
  const auto c = plain(90);
  expect_same(attend({}), attend({.window = 90}), in_fp32(inputs_for(c)), 0);
  expect_same(attend({}), attend({.window = int64_t{1} << 40}), in_fp32(inputs_for(c)), 0);
  expect_same(attend({}), attend({.window = 5, .sinks = 90}), in_fp32(inputs_for(c)), 0);
}

TEST(Attention, PackedEqualsSeparate) {
  const auto c = plain(130);
  const int64_t cut = 47;
  Mask packed;
  packed.q_positions = at::cat({at::arange(cut), at::arange(130 - cut)}).expand({2, 130});
  packed.q_segments = (at::arange(130) >= cut).to(at::kLong).expand({2, 130});
  packed.k_positions = packed.q_positions;
  packed.k_segments = packed.q_segments;
  const auto separate = [&](const TensorList& t) {
    const auto part = [&](int64_t from, int64_t count) {
      return attend({})(
          {t[0].narrow(1, from, count), t[1].narrow(1, from, count), t[2].narrow(1, from, count)});
    };
    const auto a = part(0, cut), b = part(cut, 130 - cut);
    return TensorList{at::cat({a[0], b[0]}, 1), at::cat({a[1], b[1]}, 1)};
  };
  expect_same(attend(packed), separate, in_fp32(inputs_for(c)));
}

TEST(Attention, QueriesInChunksEqualAllAtOnce) {
  const auto c = plain(100);
  const auto chunked = [&](const TensorList& t) {
    TensorList outs, lses;
    int64_t from = 0;
    for (const int64_t count :
         {1, 63, 9, 27}) {  // each chunk with the keys up to its end: q_positions by default
      const int64_t to = from + count;
      const auto r = attend({})({t[0].narrow(1, from, count), t[1].narrow(1, 0, to), t[2].narrow(1, 0, to)});
      outs.push_back(r[0]);
      lses.push_back(r[1]);
      from = to;
    }
    return TensorList{at::cat(outs, 1), at::cat(lses, 1)};
  };
  expect_same(attend({}), chunked, in_fp32(inputs_for(c)));
}

TEST(Attention, LaterKeysChangeNothing) {
  const auto c = plain(150);
  auto inputs = in_fp32(inputs_for(c));
  const auto before = attend({})(inputs);
  for (const int64_t t : {0, 63, 64, 149}) {
    auto changed = inputs;
    for (const size_t i : {1, 2}) {
      changed[i] = inputs[i].clone();
      changed[i].slice(1, t + 1).fill_(1e3f);
    }
    const auto after = attend({})(changed);
    for (const size_t i : {0, 1})
      EXPECT_TRUE(at::equal(after[i].slice(1, 0, t + 1), before[i].slice(1, 0, t + 1))) << t;
  }
}

TEST(Attention, MergedSplitsEqualTheWhole) {
  const AttentionCase c{"", 2, 40, 90, 4, 2, 16, 24};
  for (const int64_t window : {int64_t{0}, int64_t{12}}) {
    const Mask whole{.window = window};
    const auto merged = [&](const TensorList& t) {
      AttentionResult sum;
      int64_t from = 0;
      for (const int64_t count :
           {17, 0, 45, 28}) {  // without positions given, the parts would start again at 0
        Mask part = whole;
        part.q_positions = at::arange(50, 90).expand({2, 40});
        part.k_positions = at::arange(from, from + count).expand({2, count});
        const auto r = attention(t[0], t[1].narrow(1, from, count), t[2].narrow(1, from, count),
                                 on_device(part, t[0].device()));
        sum = from == 0 ? r : merge_attention(sum, r);
        from += count;
      }
      return TensorList{sum.out, sum.lse};
    };
    for (const Kernel kernel : kernels_and_reference()) {
      const ForceKernel force(kernel);
      expect_same(attend(whole), merged, on(kernel, in_fp32(inputs_for(c))));
    }
  }
}

TEST(Attention, MergeOfNothing) {
  const auto lse = at::tensor({kMinusInfinity, kMinusInfinity, 1.5}).view({1, 3, 1});
  const auto other = at::tensor({kMinusInfinity, 0.25, kMinusInfinity}).view({1, 3, 1});
  const TensorFunction fn = [&](const TensorList& t) {
    const auto r = merge_attention({t[0], lse + t[2]}, {t[1], other + t[2]});
    return TensorList{r.out, r.lse};
  };
  const auto zero = at::zeros({1, 3, 1, 2}, at::kDouble);
  auto a = normal({1, 3, 1, 2}, 1), b = normal({1, 3, 1, 2}, 2);
  a = at::where((lse == kMinusInfinity).unsqueeze(-1), zero, a);
  b = at::where((other == kMinusInfinity).unsqueeze(-1), zero, b);
  const auto results = outputs_and_gradients(fn, {a, b, at::zeros({1, 3, 1}, at::kDouble)});
  EXPECT_LE(relative_error(results[0], a + b), 1e-15);
  EXPECT_LE(relative_error(results[1], at::maximum(lse, other)), 1e-15);
  for (size_t i = 2; i < results.size(); ++i) EXPECT_TRUE(results[i].isfinite().all().item<bool>()) << i;
}

TEST(Attention, RowsThatSeeNothing) {
  const AttentionCase c{"", 1, 70, 70, 2, 1, 8, 8};
  Mask mask = mask_of(c);
  mask.k_positions =
      at::where(at::arange(70) < 66, -1, at::arange(70)).unsqueeze(0);  // four keys, at the end
  for (const Kernel kernel : kernels_and_reference()) {
    const ForceKernel force(kernel);
    const auto r = outputs_and_gradients(attend(mask), on(kernel, in_fp32(inputs_for(c))));
    EXPECT_TRUE(r[0].slice(1, 0, 66).eq(0).all().item<bool>());
    EXPECT_TRUE(r[1].slice(1, 0, 66).eq(kMinusInfinity).all().item<bool>());
    EXPECT_TRUE(r[2].slice(1, 0, 66).eq(0).all().item<bool>());
    EXPECT_TRUE(r[3].slice(1, 0, 66).eq(0).all().item<bool>());
    for (size_t i = 2; i < r.size(); ++i) EXPECT_TRUE(r[i].isfinite().all().item<bool>()) << i;
  }
}

TEST(Attention, SameForAnyNumberOfThreads) {
  for (const int64_t heads : {1, 2, 6}) {  // backward in two passes, in one, and in both
    const AttentionCase c{"", 1, 200, 200, heads, heads, 16, 16, true, 90, 2};
    expect_same_for_threads(attend(mask_of(c)), in_fp32(inputs_for(c)));
  }
}

TEST(Attention, LargeScoresDoNotOverflow) {
  const auto c = plain(70);
  auto inputs = inputs_for(c);
  inputs[0] = inputs[0] * 100;
  expect_matches_reference(attend({}), in_fp32(inputs), at::kFloat,
                           1e-3);  // scores near 1000: 1e-7 of them is 1e-4
}

TEST(Attention, NotANumberStaysOne) {
  const auto c = plain(70);
  auto inputs = in_fp32(inputs_for(c));
  inputs[0][1][3][2][5] = std::nan("");
  const auto r = attend({})(inputs);
  EXPECT_TRUE(r[0][1][3][2].isnan().all().item<bool>());
  EXPECT_TRUE(r[1][1][3][2].isnan().item<bool>());
  EXPECT_EQ(r[1].isnan().sum().item<int64_t>(), 1);
}

TEST(Attention, ViewsNeedNoCopy) {
  const auto all = normal({2, 50, 3, 4, 16}, 1).to(at::kFloat);  // q, k and v side by side
  const TensorList parts = {all.select(2, 0), all.select(2, 1), all.select(2, 2)};
  const TensorList copies = {parts[0].contiguous(), parts[1].contiguous(), parts[2].contiguous()};
  EXPECT_TRUE(at::equal(attend({})(parts)[0], attend({})(copies)[0]));
  const auto turned = parts[0].transpose(2, 3).contiguous().transpose(2, 3);  // last dimension not contiguous
  EXPECT_TRUE(at::equal(attend({})({turned, parts[1], parts[2]})[0], attend({})(copies)[0]));
}

// Keys that heads, sequences or tokens share by a stride of 0, and rows off the boundaries that wide loads need.
TEST(Attention, AnyStridesAreRead) {
  const auto q = normal({2, 200, 4, 64}, 1).to(at::kBFloat16);
  const TensorList keys = {normal({2, 200, 1, 64}, 2).to(at::kBFloat16).expand({2, 200, 4, 64}),
                           normal({1, 200, 4, 64}, 3).to(at::kBFloat16).expand({2, 200, 4, 64}),
                           normal({2, 1, 4, 64}, 4).to(at::kBFloat16).expand({2, 200, 4, 64}),
                           normal({2, 200, 4, 67}, 5).to(at::kBFloat16).narrow(3, 1, 64),
                           normal({2, 200, 4, 80}, 6).to(at::kBFloat16).narrow(3, 3, 64)};
  for (const Kernel kernel : runnable_kernels())
    for (const Mask& mask : {Mask{}, Mask{.window = 70}})
      for (const int64_t queries : {200, 1})
        for (const auto& k : keys) {
          SCOPED_TRACE(fmt::format("{}, window {}, {} queries", kernel_name(kernel), mask.window, queries));
          const ForceKernel force(kernel);
          const auto device = device_of(kernel);
          const auto place = [&](const at::Tensor& x) {  // of the same strides there
            const auto whole =
                x.as_strided({static_cast<int64_t>(x.storage().nbytes() / 2)}, {1}, 0).to(device);
            return whole.as_strided(x.sizes(), x.strides(), x.storage_offset());
          };
          const auto here = place(k), rows = q.narrow(1, 0, queries).to(device);
          const auto a = attend(mask)({rows, here, here}),
                     b = attend(mask)({rows, here.contiguous(), here.contiguous()});
          EXPECT_LE(relative_error(a[0], b[0]), AttentionBounds().half);
          EXPECT_LE(relative_error(a[1], b[1]), AttentionBounds().half);
        }
}

TEST(Attention, NothingIsKeptWithoutGradients) {
  const auto inputs = in_fp32(inputs_for(plain(5)));
  EXPECT_FALSE(attend({})(inputs)[0].requires_grad());
  const auto q = inputs[0].clone().requires_grad_();
  const c10::NoGradGuard guard;
  EXPECT_FALSE(attend({})({q, inputs[1], inputs[2]})[0].requires_grad());
}

TEST(Attention, ErrorsNameWhatIsWrong) {
  const auto q = at::zeros({2, 5, 4, 8}), k = at::zeros({2, 7, 2, 8}), v = at::zeros({2, 7, 2, 6});
  EXPECT_EQ(error_text([&] {
              attention(q, at::zeros({2, 7, 2, 9}), v, {});
            }),
            "attention: k is [2, 7, 2, 9], expected [2, -1, -1, 8]");
  EXPECT_EQ(error_text([&] {
              attention(q, at::zeros({2, 7, 3, 8}), at::zeros({2, 7, 3, 8}), {});
            }),
            "attention: q has 4 heads and k has 3; expected a multiple of k's");
  EXPECT_EQ(error_text([&] {
              attention(q, k, at::zeros({2, 6, 2, 6}), {});
            }),
            "attention: v is [2, 6, 2, 6], expected [2, 7, 2, -1]");
  EXPECT_EQ(error_text([&] {
              attention(q, k, v, {.q_segments = at::zeros({2, 5}, at::kLong)});
            }),
            "attention: only q_segments is given, expected both or neither");
  EXPECT_EQ(error_text([&] {
              attention(q, k, v, {.k_positions = at::zeros({2, 5}, at::kLong)});
            }),
            "attention: k_positions is [2, 5], expected [2, 7]");
  EXPECT_EQ(error_text([&] {
              attention(q, k, v, {.k_positions = at::full({2, 7}, int64_t{1} << 40, at::kLong)});
            }),
            "attention: k_positions holds 1099511627776; expected less than 2^31 - 1");
}

TEST(Attention, CallableAsOperator) {
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("weft::attention", "");
  const auto t = in_fp32(inputs_for(plain(9)));
  const auto positions = at::arange(9).flip(0).expand({2, 9}).contiguous();
  torch::jit::Stack stack{t[0], t[1], t[2], true, int64_t{4}, int64_t{1}, at::IValue(), positions};
  for (size_t i = stack.size(); i < op.schema().arguments().size(); ++i) {
    const auto& argument = op.schema().arguments()[i];
    stack.push_back(argument.name() == "scale" ? at::IValue(0.3) : argument.default_value().value());
  }
  op.callBoxed(&stack);
  const auto expected = attend({.window = 4, .sinks = 1, .k_positions = positions}, 0.3)(t);
  EXPECT_TRUE(at::equal(stack[0].toTensor(), expected[0]) && at::equal(stack[1].toTensor(), expected[1]));
}

}  // namespace
}  // namespace weft::ops
