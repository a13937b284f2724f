// Shapes for the test and the benchmark of the rotary embedding.
#pragma once

#include <cstdint>
#include <vector>

namespace weft::ops {

struct RopeCase {
  int64_t batch, tokens, heads, width;
  int64_t dim;  // 0: all of the width
  bool interleaved;

  int64_t bytes(int64_t element_bytes) const { return 2 * batch * tokens * heads * width * element_bytes; }
  int64_t flops() const { return 3 * batch * tokens * heads * (dim ? dim : width); }
};

struct RopeBounds {
  double fp32 = 1e-5;
  double half = 1e-2;
};

inline const std::vector<RopeCase>& rope_cases() {
  static const std::vector<RopeCase> cases = {{1, 0, 2, 8, 0, false},    {1, 1, 1, 2, 0, false},
                                              {3, 63, 1, 10, 0, false},  {3, 7, 2, 10, 0, true},
                                              {2, 65, 3, 64, 0, false},  {2, 65, 3, 64, 0, true},
                                              {1, 9, 2, 100, 36, false}, {1, 9, 2, 101, 36, true},
                                              {1, 500, 1, 256, 0, true}, {1, 500, 1, 256, 0, false}};
  return cases;
}

inline const std::vector<RopeCase>& rope_bench_cases() {
  static const std::vector<RopeCase> cases = {{1, 2048, 8, 64, 0, false}, {1, 2048, 8, 128, 0, true}};
  return cases;
}

}  // namespace weft::ops
