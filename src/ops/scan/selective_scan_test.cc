#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/recurrence_check.h"
#include "ops/scan/scan.h"
#include "ops/scan/scan_cases.h"

namespace weft::ops {
namespace {

using Tensors = std::vector<at::Tensor>;

SelectiveScan problem(const Tensors& x) { return {x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]}; }

Tensors run(const Tensors& x) {
  const auto result = selective_scan(problem(x));
  return {result.y, result.state};
}

Tensors run_reference(const Tensors& x) {
  const auto result = reference::selective_scan(problem(x));
  return {result.y, result.state};
}

Tensors list(const SelectiveInputs& in) {
  return {in.u, in.delta, in.a, in.b, in.c, in.skip, in.initial, in.starts};
}

// Tokens [begin, end), continuing from `state`.
Tensors tokens(const Tensors& x, int64_t begin, int64_t end, const at::Tensor& state) {
  auto piece = x;
  for (const size_t i : {0, 1, 3, 4, 7})
    if (x[i].defined()) piece[i] = x[i].slice(1, begin, end);
  piece[6] = state;
  return piece;
}

TEST(SelectiveScan, KernelsMatchTheReference) {
  for (const auto& c : selective_cases())
    expect_kernels_match(c.name, run, run_reference, list(make_selective_inputs(c)), scan_bound(at::kFloat));
}

TEST(SelectiveScan, HalfPrecision) {
  for (const auto type : {at::kBFloat16, at::kHalf})
    for (const auto& c : selective_cases()) {
      const auto in = list(make_selective_inputs(c, type));
      EXPECT_EQ(run(in)[0].scalar_type(), type);
      EXPECT_EQ(run(in)[1].scalar_type(), at::kFloat);
      expect_kernels_match(c.name, run, run_reference, in, scan_bound(type));
    }
}

TEST(SelectiveScan, MisalignedInputs) {
  const auto run_misaligned = [](const Tensors& x) { return run(misaligned(x)); };
  for (const auto type : {at::kFloat, at::kBFloat16})
    expect_kernels_match("misaligned", run_misaligned, run_reference,
                         list(make_selective_inputs({"", 2, 40, 64, 16, true, true, true}, type)),
                         scan_bound(type));
}

TEST(SelectiveScan, ReferenceGradientsAreTheDerivatives) {
  const Threads one(1);
  expect_gradients(run, list(make_selective_inputs({"", 2, 5, 2, 3, true, true, true}, at::kDouble)));
}

// Two channels, two states, four tokens; y is gated by silu(cos(.2 t + d)) afterwards. Values from the
// definition.
TEST(SelectiveScan, GoldenValues) {
  const auto t = at::arange(4, at::kDouble).reshape({1, 4, 1}),
             d = at::arange(2, at::kDouble).reshape({1, 1, 2});
  const auto n = d;
  const Tensors wide = {at::sin(.9 * t + 1.7 * d),
                        at::softplus(.5 * at::cos(t + d) + .1),
                        -(at::arange(2, at::kDouble) + 1).expand({2, 2}),
                        at::cos(.5 * t + n),
                        at::sin(.3 * t + n + 1),
                        at::full({2}, .5, at::kDouble),
                        {},
                        {}};
  const auto gate = at::silu(at::cos(.2 * t + d));
  const auto y =
      at::tensor({0.0, .573240, .728059, .235987, .672825, .022780, .309442, .003015}, at::kDouble);
  const auto state = at::tensor({.410732, -.264097, .158128, .487454}, at::kDouble);
  for (const auto type : {at::kDouble, at::kFloat}) {
    auto in = wide;
    for (auto& x : in)
      if (x.defined()) x = x.to(type);
    const auto result = run(in);
    EXPECT_TRUE(at::allclose(result[0].to(at::kDouble) * gate, y.reshape({1, 4, 2}), 0, 1e-6)) << type;
    EXPECT_TRUE(at::allclose(result[1].to(at::kDouble), state.reshape({1, 2, 2}), 0, 1e-6)) << type;
  }
}

TEST(SelectiveScan, Limits) {
  auto in = list(make_selective_inputs({"", 1, 12, 20, 3, true, true}));
  in[1] = at::zeros_like(in[1]);  // no step: the state stays, y = skip u + h c
  EXPECT_TRUE(at::equal(run(in)[1], in[6]));
  in[1] = at::full_like(in[1], 1e6);  // a huge step forgets all but the last token
  expect_close("forgets", run(in)[1] / 1e6,
               in[0].select(1, 11).unsqueeze(2) * in[3].select(1, 11).unsqueeze(1), 1e-5);
  in[1] = at::ones_like(in[1]);
  in[2] = at::zeros_like(in[2]);  // no decay: a running sum
  expect_close("sums", run(in)[1], in[6] + at::einsum("bte,btn->ben", {in[0], in[3]}), 1e-5);
}

TEST(SelectiveScan, OneStateIsAScan) {
  auto in = list(make_selective_inputs({"", 2, 50, 35, 1, false, true, true}));
  in[4] = at::ones_like(in[4]);
  const auto expected =
      scan(at::exp(in[1] * in[2].squeeze(1)), in[1] * in[0] * in[3], in[6].squeeze(2), in[7]);
  expect_close("y", run(in)[0], expected.h, 1e-5);
}

TEST(SelectiveScan, PiecesEqualTheWhole) {
  for (const auto& c : selective_cases()) {
    if (c.tokens < 9) continue;
    const auto in = list(make_selective_inputs(c));
    const auto whole = run(in);
    auto state = in[6];
    Tensors pieces;
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 5}, {5, 6}, {6, 6}, {6, c.tokens}}) {
      const auto piece = run(tokens(in, begin, end, state));
      pieces.push_back(piece[0]);
      state = piece[1];
    }
    expect_equal(c.name, {at::cat(pieces, 1), state}, whole);
  }
}

TEST(SelectiveScan, PackedDocumentsDoNotMix) {
  auto in = list(make_selective_inputs({"", 1, 50, 19, 4, true, true}));
  in[0].slice(1, 0, 37).fill_(INFINITY);  // must not reach the second document
  in[7] = at::zeros({1, 50}, at::kBool);
  in[7][0][37].fill_(true);
  const auto packed = run(in), alone = run(tokens(in, 37, 50, {}));
  expect_equal("document", {packed[0].slice(1, 37), packed[1]}, alone);
}

TEST(SelectiveScan, IsCausal) {
  const auto in = list(make_selective_inputs({"", 2, 40, 7, 3, true}));
  const auto before = run(in)[0];
  for (const size_t i : {0, 1, 3, 4}) {
    auto changed = in;
    changed[i] = in[i].clone();
    changed[i].select(1, 21).add_(0.5);
    const auto after = run(changed)[0];
    EXPECT_TRUE(at::equal(before.slice(1, 0, 21), after.slice(1, 0, 21))) << i;
    EXPECT_FALSE(at::equal(before.select(1, 21), after.select(1, 21))) << i;
  }
}

TEST(SelectiveScan, StepsEqualTheWhole) {
  const Threads one(1);
  for (const auto type : {at::kFloat, at::kDouble})
    for (const auto& c : selective_cases())
      for (const Kernel kernel : cpu_kernels()) {
        const ForceKernel force(kernel);
        const auto in = list(make_selective_inputs(c, type));
        const auto whole = run(in);
        auto state = c.initial ? in[6].clone() : at::zeros({c.batch, c.channels, c.states}, type);
        Tensors outputs;
        for (int64_t t = 0; t < std::min<int64_t>(c.tokens, 70); ++t)
          outputs.push_back(selective_scan_step(problem(tokens(in, t, t + 1, state))).y);
        if (outputs.empty()) continue;
        const auto y = at::cat(outputs, 1);
        expect_close(c.name, y, whole[0].slice(1, 0, y.size(1)), 1e-5);
        if (c.tokens <= 70) expect_close(c.name, state, whole[1], 1e-5);
      }
}

TEST(SelectiveScan, ThreadsDoNotChangeResults) {
  expect_thread_independent(run, list(make_selective_inputs({"", 3, 70, 200, 4, true, true, true})));
}

TEST(SelectiveScan, ErrorsNameTheTensor) {
  const auto in = list(make_selective_inputs({"", 2, 4, 6, 3, true, true}));
  const auto message = [&](size_t i, const at::Tensor& x) {
    auto changed = in;
    changed[i] = x;
    return error_of<InputError>([&] { run(changed); });
  };
  EXPECT_EQ(message(1, at::ones({2, 4, 5})), "selective_scan: delta is [2, 4, 5], expected [2, 4, 6]");
  EXPECT_EQ(message(3, at::ones({2, 4, 2})), "selective_scan: b is [2, 4, 2], expected [2, 4, 3]");
  EXPECT_EQ(message(5, at::ones({5})), "selective_scan: skip is [5], expected [6]");
  EXPECT_EQ(message(6, at::ones({2, 6, 4})),
            "selective_scan: initial_state is [2, 6, 4], expected [2, 6, 3]");
  EXPECT_NE(message(4, {}).find("c is missing"), std::string::npos);
  EXPECT_NE(error_of<InputError>([&] { selective_scan_step(problem(in)); }).find("expected one token"),
            std::string::npos);
  EXPECT_NE(
      error_of<InputError>([&] { selective_scan_step(problem(tokens(in, 0, 1, {}))); }).find("initial_state"),
      std::string::npos);
}

}  // namespace
}  // namespace weft::ops
