// Tokens of windowed attention over a ring of keys against attention over all of them, in fp64.
#include "ops/attention/ring_step.h"

#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include "ops/attention/attention.h"
#include "ops/norm/norm.h"
#include "ops/reference_check.h"

namespace weft::ops {
namespace {

struct Case {
  int64_t batch, heads, key_heads, key_width, value_width, window, sinks, tokens;
  bool norms, rotates;
  Rope rope = {};
  double softcap = 0;
};

struct Token {
  at::Tensor q, k, v;
};
Token token(const Case& c, int64_t t) {
  const auto seed = static_cast<uint64_t>(3 * t + 10);
  return {normal({c.batch, 1, c.heads, c.key_width}, seed),
          normal({c.batch, 1, c.key_heads, c.key_width}, seed + 1),
          normal({c.batch, 1, c.key_heads, c.value_width}, seed + 2)};
}
at::Tensor norm_weight(const Case& c, uint64_t seed) {
  return c.norms ? normal({c.key_width}, seed).to(at::kFloat) : at::Tensor();
}
// Rows stand at different places of their documents.
at::Tensor positions(const Case& c, int64_t t) {
  return (at::arange(c.batch, at::kLong) * 5 + t).unsqueeze(1);
}

// The read-outs of all tokens by attention over all keys.
at::Tensor expected_of(const Case& c, at::ScalarType rounded) {
  TensorList q, k, v, at_positions;
  for (int64_t t = 0; t < c.tokens; ++t) {
    const auto x = token(c, t);
    q.push_back(x.q), k.push_back(x.k), v.push_back(x.v), at_positions.push_back(positions(c, t));
  }
  const auto places = at::cat(at_positions, 1);
  const auto turned = [&](const TensorList& rows, const at::Tensor& weight) {
    auto x = at::cat(rows, 1).to(rounded).to(at::kDouble);
    if (weight.defined()) x = rms_norm(x, weight.to(at::kDouble), 1e-5);
    return c.rotates ? rope(x, places, c.rope) : x;
  };
  return attention(turned(q, norm_weight(c, 1)), turned(k, norm_weight(c, 2)),
                   at::cat(v, 1).to(rounded).to(at::kDouble),
                   {.window = c.window, .sinks = c.sinks, .q_positions = places, .k_positions = places},
                   {.softcap = c.softcap})
      .out;
}

at::Tensor by_steps(const Case& c, at::ScalarType type, c10::DeviceType device) {
  const int64_t columns = c.sinks + std::max<int64_t>(c.window - 1, 1);
  const auto options = at::TensorOptions(type).device(device);
  const auto there = [&](const at::Tensor& x) { return x.defined() ? x.to(device) : x; };
  RingStep in{.q_norm = there(norm_weight(c, 1)), .k_norm = there(norm_weight(c, 2))};
  in.rotates = c.rotates, in.rope = c.rope, in.window = c.window, in.sinks = c.sinks, in.softcap = c.softcap;
  in.ring_k = at::zeros({c.batch, columns, c.key_heads, c.key_width}, options);
  in.ring_v = at::zeros({c.batch, columns, c.key_heads, c.value_width}, options);
  in.slots = at::full({c.batch, columns}, -1, options.dtype(at::kLong));
  TensorList out;
  for (int64_t t = 0; t < c.tokens; ++t) {
    const auto x = token(c, t);
    in.q = x.q.to(options), in.k = x.k.to(options), in.v = x.v.to(options),
    in.positions = there(positions(c, t));
    out.push_back(attention_ring_step(in));
  }
  return at::cat(out, 1);
}

void expect_matches(const Case& c) {
  for (const auto& [type, bound] : {std::pair{at::kFloat, 1e-5}, {at::kBFloat16, 2e-2}, {at::kHalf, 2e-2}}) {
    const auto expected = expected_of(c, type);
    for (const Kernel kernel : runnable_kernels()) {
      const ForceKernel force(kernel);
      const PoisonedMemory poisoned;
      EXPECT_LE(relative_error(by_steps(c, type, device_of(kernel)), expected), bound)
          << kernel_name(kernel) << ", " << c10::toString(type) << ", " << c.heads << "/" << c.key_heads
          << " heads of " << c.key_width << ", window " << c.window << ", sinks " << c.sinks;
    }
  }
}

TEST(RingStep, Windows) {
  expect_matches({1, 2, 2, 64, 64, 8, 0, 30, true, true});
  expect_matches({3, 4, 1, 128, 128, 33, 3, 45, false, true});
  expect_matches({2, 3, 3, 128, 128, 300, 0, 12, true, false});
  expect_matches({2, 2, 1, 64, 64, 1, 2, 9, true, true});
  expect_matches({1, 2, 1, 64, 64, 140, 2, 150, true, true});  // every block of a cluster has keys
}

TEST(RingStep, Rotations) {
  expect_matches({2, 2, 2, 64, 64, 16, 0, 20, false, true, {.dim = 32, .theta = 500, .interleaved = true}});
  expect_matches({1, 2, 2, 128, 128, 16, 0, 20, true, true, {.dim = 64, .magnitude = 1.3}});
}

TEST(RingStep, OtherWidthsAndSoftcap) {
  expect_matches({2, 2, 1, 24, 40, 8, 0, 12, false, true});
  expect_matches({1, 2, 2, 64, 64, 8, 0, 12, false, true, {}, 5});
}

TEST(RingStep, ErrorsNameWhatIsWrong) {
  EXPECT_EQ(error_text([] {
              attention_ring_step({.q = at::zeros({2, 2, 4, 8})});
            }),
            "attention_ring_step: q is [2, 2, 4, 8], expected [batch, 1, heads, width]");
  const auto in = [] {
    return RingStep{.q = at::zeros({2, 1, 4, 8}),
                    .k = at::zeros({2, 1, 2, 8}),
                    .v = at::zeros({2, 1, 2, 8}),
                    .positions = at::zeros({2, 1}, at::kLong),
                    .window = 5,
                    .ring_k = at::zeros({2, 4, 2, 8}),
                    .ring_v = at::zeros({2, 4, 2, 8}),
                    .slots = at::full({2, 4}, -1, at::kLong)};
  };
  EXPECT_EQ(attention_ring_step(in()).sizes(), at::IntArrayRef({2, 1, 4, 8}));
  auto small = in();
  small.sinks = 1;
  EXPECT_EQ(error_text([&] { attention_ring_step(small); }),
            "attention_ring_step: a ring of 4 columns, 1 of them for sinks, cannot hold a window of 5");
  auto narrow = in();
  narrow.ring_v = narrow.ring_v.to(at::kHalf);
  EXPECT_EQ(error_text([&] { attention_ring_step(narrow); }),
            "attention_ring_step: ring_v is Half, expected Float as its new row");
  auto norm = in();
  norm.k_norm = at::ones({4});
  EXPECT_EQ(error_text([&] { attention_ring_step(norm); }),
            "attention_ring_step: k_norm is [4], expected [8]");
  auto slots = in();
  slots.slots = slots.slots.to(at::kInt);
  EXPECT_EQ(error_text([&] { attention_ring_step(slots); }),
            "attention_ring_step: slots is Int on cpu, expected int64 on cpu");
}

}  // namespace
}  // namespace weft::ops
