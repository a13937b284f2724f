#include "ops/scan/scan.h"

#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/recurrence_check.h"
#include "ops/scan/scan_cases.h"

namespace weft::ops {
namespace {

using Tensors = std::vector<at::Tensor>;

Tensors run(const Tensors& x) {
  const auto result = scan(x[0], x[1], x[2], x[3]);
  return {result.h, result.state};
}

Tensors run_reference(const Tensors& x) {
  const auto result = reference::scan(x[0], x[1], x[2], x[3]);
  return {result.h, result.state};
}

Tensors list(const ScanInputs& in) { return {in.a, in.b, in.initial, in.starts}; }

at::Tensor part(const at::Tensor& x, int64_t begin, int64_t end) {
  return x.defined() && x.dim() > 1 ? x.slice(1, begin, end) : x;
}

TEST(Scan, KernelsMatchTheReference) {
  for (const auto& c : scan_cases())
    expect_kernels_match(c.name, run, run_reference, list(make_scan_inputs(c)), scan_bound(at::kFloat));
}

TEST(Scan, HalfPrecision) {
  for (const auto type : {at::kBFloat16, at::kHalf})
    for (const auto& c : scan_cases()) {
      if (c.complex) continue;
      const auto in = make_scan_inputs(c, type);
      EXPECT_EQ(scan(in.a, in.b).h.scalar_type(), type);
      EXPECT_EQ(scan(in.a, in.b).state.scalar_type(), at::kFloat);
      expect_kernels_match(c.name, run, run_reference, list(in), scan_bound(type));
    }
}

TEST(Scan, RealAndComplexMix) {
  const ScanCase real{"", 2, 9, 20}, complex{"", 2, 9, 20, true, true};
  const auto r = make_scan_inputs(real), z = make_scan_inputs(complex);
  expect_kernels_match("complex a", run, run_reference, {z.a, r.b, {}, {}}, 1e-5);
  expect_kernels_match("complex b", run, run_reference, {r.a, z.b, {}, {}}, 1e-5);
  EXPECT_EQ(scan(z.a, r.b).h.scalar_type(), at::kComplexFloat);
}

// Tensors whose conjugation torch has put off, forward and backward.
TEST(Scan, LazyConjugates) {
  const auto conjugated = [](const auto& op) {
    return [&op](const Tensors& x) {
      auto out = op({x[0].conj(), x[1].conj(), x[2].conj(), x[3]});
      return Tensors{out[0].conj().resolve_conj(), out[1].conj().resolve_conj()};
    };
  };
  const auto in = list(make_scan_inputs({"", 2, 9, 20, true, false, true, true}));
  expect_kernels_match("conjugates", conjugated(run), conjugated(run_reference), in, scan_bound(at::kFloat));
}

TEST(Scan, ReferenceGradientsAreTheDerivatives) {
  const Threads one(1);
  for (const bool complex : {false, true})
    for (const bool constant : {false, true}) {
      const ScanCase c{"", 2, 5, 2, complex, constant, true, true};
      expect_gradients(run, list(make_scan_inputs(c, at::kDouble)));
    }
}

TEST(Scan, KnownSums) {
  const auto ones = at::ones({1, 6, 3});
  EXPECT_TRUE(at::allclose(scan(ones, ones).h, at::cumsum(ones, 1)));
  const auto half = at::full({3}, 0.5);
  EXPECT_TRUE(at::allclose(scan(half, ones).state, at::full({1, 3}, 2 - std::pow(2.0, -5))));
}

TEST(Scan, PiecesEqualTheWhole) {
  for (const auto& c : scan_cases()) {
    const auto in = make_scan_inputs(c);
    const auto whole = scan(in.a, in.b, in.initial, in.starts);
    auto state = in.initial;
    Tensors pieces;
    for (const auto& [begin, end] : {std::pair<int64_t, int64_t>{0, 7}, {7, 8}, {8, 8}, {8, c.tokens}}) {
      if (c.tokens < 9) continue;
      const auto piece =
          scan(part(in.a, begin, end), part(in.b, begin, end), state, part(in.starts, begin, end));
      state = piece.state;
      pieces.push_back(piece.h);
    }
    if (!pieces.empty()) expect_equal(c.name, {at::cat(pieces, 1), state}, {whole.h, whole.state});
  }
}

TEST(Scan, PackedDocumentsDoNotMix) {
  auto in = make_scan_inputs({"", 1, 30, 19, false, false, true});
  in.b.slice(1, 0, 12).fill_(INFINITY);  // must not reach the second document
  in.starts = at::zeros({1, 30}, at::kBool);
  in.starts[0][12].fill_(true);
  const auto packed = scan(in.a, in.b, in.initial, in.starts);
  const auto alone = scan(part(in.a, 12, 30), part(in.b, 12, 30));
  expect_equal("document", {part(packed.h, 12, 30), packed.state}, {alone.h, alone.state});
}

TEST(Scan, IsCausal) {
  const auto in = make_scan_inputs({"", 2, 20, 7});
  auto changed = in.b.clone();
  changed.select(1, 11).add_(1);
  const auto before = scan(in.a, in.b).h, after = scan(in.a, changed).h;
  EXPECT_TRUE(at::equal(part(before, 0, 11), part(after, 0, 11)));
  EXPECT_FALSE(at::equal(before.select(1, 11), after.select(1, 11)));
}

TEST(Scan, ThreadsDoNotChangeResults) {
  expect_thread_independent(run, list(make_scan_inputs({"", 3, 300, 200, false, true, true, true})));
}

TEST(Scan, ErrorsNameTheTensor) {
  const auto b = at::ones({2, 4, 6});
  const auto message = [&](const at::Tensor& a, const at::Tensor& initial, const at::Tensor& starts) {
    return error_of<InputError>([&] { scan(a, b, initial, starts); });
  };
  EXPECT_EQ(message(at::ones({2, 4, 5}), {}, {}), "scan: a is [2, 4, 5], expected [2, 4, 6]");
  EXPECT_EQ(message(at::ones({5}), {}, {}), "scan: a is [5], expected [2, 4, 6]");
  EXPECT_EQ(message(b, at::ones({2, 5}), {}), "scan: initial is [2, 5], expected [2, 6]");
  EXPECT_EQ(message(b, {}, at::ones({2, 4})), "scan: starts has type Float, expected Bool");
  EXPECT_NE(message(b, at::ones({2, 6}, at::kComplexFloat), {}).find("complex"), std::string::npos);
  EXPECT_NE(message({}, {}, {}).find("a is missing"), std::string::npos);
}

TEST(Scan, SecondDerivativesAreRefused) {
  const ForceKernel force(cpu_kernels().front());  // the reference has them
  const auto b = at::ones({1, 3, 2}).requires_grad_(true);
  const auto loss = scan(at::ones({2}), b).h.sum();
  EXPECT_THROW(loss.backward({}, true, true), Unsupported);
}

}  // namespace
}  // namespace weft::ops
