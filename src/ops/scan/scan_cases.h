// Shapes, inputs and bounds of scan and selective_scan, for tests and benchmarks.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <string>
#include <vector>

#include "ops/scan/kernel.h"

namespace weft::ops {

struct ScanCase {
  std::string name;
  int64_t batch, tokens, channels;
  bool complex = false, constant = false, initial = false, starts = false;
  double values() const { return static_cast<double>(batch * tokens * channels) * (complex ? 2 : 1); }
  double flops() const { return values() * (complex ? 4 : 2); }
  double bytes() const { return values() * 4 * (constant ? 2 : 3); }  // fp32, each tensor once
};

inline double scan_bound(at::ScalarType type) {
  return type == at::kFloat || type == at::kComplexFloat ? 1e-5 : 2e-2;
}

// Starts of documents: token 0 and two neighbours in the middle of the first sequence, random ones elsewhere.
inline at::Tensor make_starts(int64_t batch, int64_t tokens, at::Generator& generator) {
  auto starts = at::rand({batch, tokens}, generator, at::TensorOptions(at::kFloat)) < 0.1;
  if (batch && tokens > 2) {
    starts[0][0].fill_(true);
    starts[0].slice(0, tokens / 2, tokens / 2 + 2).fill_(true);
  }
  return starts;
}

struct ScanInputs {
  at::Tensor a, b, initial, starts;
};

// |a| < 1; `type` is that of a and b, for complex cases always complex64.
inline ScanInputs make_scan_inputs(const ScanCase& c, at::ScalarType type = at::kFloat, uint64_t seed = 1) {
  auto generator = at::detail::createCPUGenerator(seed);
  const auto normal = [&](at::IntArrayRef shape) {
    return at::randn(shape, generator, at::TensorOptions(c.complex ? at::kComplexFloat : at::kFloat));
  };
  const auto kept = c.complex ? type == at::kDouble ? at::kComplexDouble : at::kComplexFloat : type;
  const std::vector<int64_t> shape = {c.batch, c.tokens, c.channels};
  auto a = normal(c.constant ? std::vector<int64_t>{c.channels} : shape);
  a = c.complex ? a * (0.95 / (0.3 + a.abs())) : at::sigmoid(a + 2);
  ScanInputs in{a.to(kept), normal(shape).to(kept), {}, {}};
  if (c.initial)
    in.initial = normal({c.batch, c.channels}).to(type == at::kDouble || c.complex ? kept : at::kFloat);
  if (c.starts) in.starts = make_starts(c.batch, c.tokens, generator);
  return in;
}

inline const std::vector<ScanCase>& scan_cases() {
  static const std::vector<ScanCase> cases = {
      {"empty", 2, 0, 5, false, false, true},
      {"one", 1, 1, 1},
      {"odd", 3, 63, 37, false, false, true, true},
      {"block", 1, 33, 64, false, false, true},
      {"past_block", 2, 20, 131, false, false, false, true},
      {"long", 1, 500, 3, false, false, true, true},
      {"clusters", 1, 2050, 8, false, false, true, true},
      {"pairs", 2, 1030, 12, false, true, true, true},
      {"constant", 3, 41, 70, false, true, true, true},
      {"complex", 3, 37, 41, true, false, true, true},
      {"complex_constant", 2, 50, 67, true, true, true, true},
      {"complex_empty", 1, 0, 3, true, true, true},
  };
  return cases;
}

// A pair of states for each channel; `flops` are those of the products with the matrices.
struct MatrixScanCase {
  std::string name;
  int64_t batch, tokens, channels;
  bool initial = false, starts = false;
  double flops() const { return 8.0 * static_cast<double>(batch * tokens * channels); }
};

// Matrices with columns of norm below one.
inline ScanInputs make_matrix_scan_inputs(const MatrixScanCase& c, at::ScalarType type = at::kFloat,
                                          uint64_t seed = 1) {
  auto generator = at::detail::createCPUGenerator(seed);
  const auto normal = [&](at::IntArrayRef shape) {
    return at::randn(shape, generator, at::TensorOptions(at::kFloat));
  };
  const auto a = normal({c.batch, c.tokens, 2, 2, c.channels});
  ScanInputs in{(a / (0.3 + a.square().sum({2, 3}, true).sqrt())).to(type),
                normal({c.batch, c.tokens, 2, c.channels}).to(type),
                {},
                {}};
  if (c.initial)
    in.initial = normal({c.batch, 2, c.channels}).to(type == at::kDouble ? at::kDouble : at::kFloat);
  if (c.starts) in.starts = make_starts(c.batch, c.tokens, generator);
  return in;
}

inline const std::vector<MatrixScanCase>& matrix_scan_cases() {
  static const std::vector<MatrixScanCase> cases = {
      {"empty", 2, 0, 5, true},
      {"one", 1, 1, 1},
      {"odd", 3, 63, 37, true, true},
      {"block", 1, 33, 64, true},
      {"past_block", 2, 20, 131, false, true},
      {"long", 1, 500, 3, true, true},
  };
  return cases;
}

struct SelectiveCase {
  std::string name;
  int64_t batch, tokens, channels, states;
  bool skip = false, initial = false, starts = false;
  double flops() const { return 9.0 * static_cast<double>(batch * tokens * channels * states); }
  double bytes() const { return 4.0 * static_cast<double>(batch * tokens * (3 * channels + 2 * states)); }
};

struct SelectiveInputs {
  at::Tensor u, delta, a, b, c, skip, initial, starts;
};

inline SelectiveInputs make_selective_inputs(const SelectiveCase& c, at::ScalarType type = at::kFloat,
                                             uint64_t seed = 1) {
  auto generator = at::detail::createCPUGenerator(seed);
  const auto normal = [&](at::IntArrayRef shape) {
    return at::randn(shape, generator, at::TensorOptions(at::kFloat));
  };
  const auto sums = type == at::kDouble ? at::kDouble : at::kFloat;
  SelectiveInputs in;
  in.u = normal({c.batch, c.tokens, c.channels}).to(type);
  in.delta = at::softplus(normal({c.batch, c.tokens, c.channels}) - 1).to(type);
  in.a = -at::exp(normal({c.channels, c.states})).to(sums);
  in.b = normal({c.batch, c.tokens, c.states}).to(type);
  in.c = normal({c.batch, c.tokens, c.states}).to(type);
  if (c.skip) in.skip = normal({c.channels}).to(sums);
  if (c.initial) in.initial = normal({c.batch, c.channels, c.states}).to(sums);
  if (c.starts) in.starts = make_starts(c.batch, c.tokens, generator);
  return in;
}

inline const std::vector<SelectiveCase>& selective_cases() {
  constexpr int64_t chunk = kernels::kSelectiveChunk;
  static const std::vector<SelectiveCase> cases = {
      {"empty", 2, 0, 5, 3, true, true},
      {"one", 1, 1, 1, 1},
      {"before_chunk", 1, chunk - 1, 16, 4, true},
      {"chunk", 3, chunk, 5, 2, true, true, true},
      {"past_chunk", 1, chunk + 1, 33, 16, false, true},
      {"odd", 3, 63, 70, 5, true, true, true},
      {"long", 1, 500, 3, 16, true, false, true},
      {"blocks", 2, 40, 150, 16, true, true, true},
  };
  return cases;
}

}  // namespace weft::ops
