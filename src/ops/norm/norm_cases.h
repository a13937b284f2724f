// Shapes for the test and the benchmark of the normalisations.
#pragma once

#include <cstdint>
#include <vector>

namespace weft::ops {

struct NormCase {
  int64_t rows;
  int64_t width;
  double eps = 1e-5;

  // Read x (and gate), write y.
  int64_t bytes(bool gated, int64_t element_bytes) const {
    return (gated ? 3 : 2) * rows * width * element_bytes;
  }
};

struct NormBounds {
  double fp32 = 1e-5;
  double half = 1e-2;
};

// One number in a row, with an eps that keeps its slope above rounding; odd widths and fewer rows than a
// block; more rows than blocks; head-sized and model-sized rows.
inline const std::vector<NormCase>& norm_cases() {
  static const std::vector<NormCase> cases = {{0, 8},  {1, 1, 0.5}, {3, 5},     {17, 16},  {33, 31},
                                              {5, 63}, {40, 64},    {1500, 33}, {12, 500}, {70, 1024}};
  return cases;
}

inline const std::vector<NormCase>& norm_bench_cases() {
  static const std::vector<NormCase> cases = {{4096, 64}, {4096, 512}, {2048, 2048}};
  return cases;
}

}  // namespace weft::ops
