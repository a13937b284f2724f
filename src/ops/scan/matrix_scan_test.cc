#include <gtest/gtest.h>

#include "base/error.h"
#include "ops/recurrence_check.h"
#include "ops/scan/scan.h"
#include "ops/scan/scan_cases.h"

namespace weft::ops {
namespace {

using Tensors = std::vector<at::Tensor>;

Tensors run(const Tensors& x) {
  const auto result = matrix_scan(x[0], x[1], x[2], x[3]);
  return {result.h, result.state};
}

Tensors run_reference(const Tensors& x) {
  const auto result = reference::matrix_scan(x[0], x[1], x[2], x[3]);
  return {result.h, result.state};
}

Tensors list(const ScanInputs& in) { return {in.a, in.b, in.initial, in.starts}; }

TEST(MatrixScan, KernelsMatchTheReference) {
  for (const auto& c : matrix_scan_cases())
    expect_kernels_match(c.name, run, run_reference, list(make_matrix_scan_inputs(c)),
                         scan_bound(at::kFloat));
}

TEST(MatrixScan, HalfPrecision) {
  for (const auto type : {at::kBFloat16, at::kHalf})
    for (const auto& c : matrix_scan_cases())
      expect_kernels_match(c.name, run, run_reference, list(make_matrix_scan_inputs(c, type)),
                           scan_bound(type));
}

TEST(MatrixScan, ReferenceGradientsAreTheDerivatives) {
  expect_gradients(run, list(make_matrix_scan_inputs({"", 2, 5, 2, true, true}, at::kDouble)));
}

// A rotation and scaling is the product with a complex number.
TEST(MatrixScan, RotationsAreComplexNumbers) {
  const auto in = make_scan_inputs({"", 2, 40, 9, true, false, true, true});
  const auto re = at::real(in.a), im = at::imag(in.a);
  const auto a = at::stack({at::stack({re, -im}, 2), at::stack({im, re}, 2)}, 2);  // [B, T, 2, 2, E]
  const auto split = [](const at::Tensor& z, int64_t dim) {
    return at::stack({at::real(z), at::imag(z)}, dim);
  };
  const auto pairs = matrix_scan(a, split(in.b, 2), split(in.initial, 1), in.starts);
  expect_close("h", pairs.h, split(scan(in.a, in.b, in.initial, in.starts).h, 2), 1e-5);
}

TEST(MatrixScan, ThreadsDoNotChangeResults) {
  expect_thread_independent(run, list(make_matrix_scan_inputs({"", 3, 300, 200, true, true})));
}

TEST(MatrixScan, ErrorsNameTheTensor) {
  const auto b = at::ones({2, 4, 2, 6});
  const auto message = [&](const at::Tensor& a, const at::Tensor& initial) {
    return error_of<InputError>([&] { matrix_scan(a, b, initial); });
  };
  EXPECT_EQ(message(at::ones({2, 4, 2, 6}), {}), "matrix_scan: a is [2, 4, 2, 6], expected [2, 4, 2, 2, 6]");
  EXPECT_EQ(message(at::ones({2, 4, 2, 2, 6}), at::ones({2, 6})),
            "matrix_scan: initial is [2, 6], expected [2, 2, 6]");
  EXPECT_NE(message(at::ones({2, 4, 2, 2, 6}, at::kComplexFloat), {}).find("a is complex"),
            std::string::npos);
}

// Token by token in place equals the whole, bit for bit.
template <class Whole, class Step>
void expect_steps(const ScanInputs& in, const Whole& whole, const Step& step) {
  for (const Kernel kernel : cpu_kernels()) {
    const ForceKernel force(kernel);
    const auto expected = whole(in.a, in.b, in.initial, at::Tensor());
    auto state = in.initial.clone();
    Tensors rows;
    for (int64_t t = 0; t < in.b.size(1); ++t)
      rows.push_back(step(in.a.dim() == 1 ? in.a : in.a.narrow(1, t, 1), in.b.narrow(1, t, 1), state));
    expect_equal(std::string(kernel_name(kernel)), {at::cat(rows, 1), state}, {expected.h, expected.state});
  }
}

TEST(ScanStep, EqualsTheWhole) {
  for (const bool constant : {false, true})
    for (const bool complex : {false, true})
      expect_steps(make_scan_inputs({"", 3, 9, 37, complex, constant, true}), scan, scan_step);
  expect_steps(make_matrix_scan_inputs({"", 3, 9, 37, true}), matrix_scan, matrix_scan_step);
}

TEST(ScanStep, ErrorsNameTheState) {
  const auto b = at::ones({2, 1, 6}), state = at::ones({6, 2}).t();
  EXPECT_EQ(error_of<InputError>([&] { scan_step(b, b, state); }),
            "scan_step: state is [2, 6] Float, expected contiguous Float");
  EXPECT_EQ(error_of<InputError>([&] {
              scan_step(at::ones({6}), at::ones({2, 3, 6}), state);
            }),
            "scan_step: b is [2, 3, 6], expected one token");
}

}  // namespace
}  // namespace weft::ops
