// Shapes for the test and the benchmark of the cross-entropy.
#pragma once

#include <cstdint>
#include <vector>

namespace weft::ops {

struct LossCase {
  int64_t tokens, width, vocabulary;
  double scale = 1;

  int64_t forward_flops() const { return 2 * tokens * width * vocabulary; }
  int64_t backward_flops() const { return 3 * forward_flops(); }
  int64_t bytes(int64_t element_bytes) const { return (tokens + vocabulary) * width * element_bytes; }
};

struct LossBounds {
  double fp32 = 1e-5;
  double half = 2e-2;
};

// The last but one runs in several blocks of tokens with a short one at the end.
inline const std::vector<LossCase>& loss_cases() {
  static const std::vector<LossCase> cases = {{0, 4, 5},           {1, 3, 1},          {1, 8, 63},
                                              {63, 5, 17, 0.25},   {31, 16, 500, 2.0}, {300, 8, 20011},
                                              {500, 12, 257, -0.5}};
  return cases;
}

inline const std::vector<LossCase>& loss_bench_cases() {
  static const std::vector<LossCase> cases = {{2048, 512, 8192}, {512, 1024, 50304}};
  return cases;
}

}  // namespace weft::ops
