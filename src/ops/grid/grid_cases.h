// Inputs of the tests of the grid.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <string>
#include <vector>

#include "ops/grid/grid.h"

namespace weft::ops {

struct GridCase {
  int64_t batch, rows, columns, heads, k, v;
  std::vector<GridWay> ways;
};

inline std::vector<GridCase> grid_cases() {
  return {{1, 1, 1, 1, 3, 2, {{}}},           {2, 1, 7, 1, 4, 5, {{}}},
          {1, 9, 1, 2, 4, 4, {{.up = true}}}, {2, 5, 3, 2, 4, 6, {{.left = true}}},
          {1, 4, 17, 1, 8, 8, {{}}},          {1, 8, 8, 2, 8, 8, all_grid_ways()},
          {1, 0, 4, 2, 3, 3, {{}}},           {2, 6, 11, 1, 5, 3, all_grid_ways()}};
}

// q, k, v, transition, source, mark, direct in fp64. Transitions of either sign, with sums over the leaving edges
// of at most one, so that nothing explodes.
inline std::vector<at::Tensor> make_grid_inputs(const GridCase& c, uint64_t seed) {
  auto random = at::make_generator<at::CPUGeneratorImpl>(seed);
  const auto wide = at::TensorOptions().dtype(at::kDouble);
  const auto normal = [&](at::IntArrayRef shape) { return at::randn(shape, random, wide); };
  const auto ways = static_cast<int64_t>(c.ways.size());
  auto t = normal({c.batch, c.rows, c.columns, ways, c.heads, 2, 2});
  t = t / t.abs().sum(-2, true).clamp_min(1e-3);
  return {normal({c.batch, c.rows, c.columns, c.heads, c.k}),
          normal({c.batch, c.rows, c.columns, c.heads, c.k}),
          normal({c.batch, c.rows, c.columns, c.heads, c.v}),
          t,
          normal({c.batch, c.rows, c.columns, ways, c.heads, 2}),
          normal({c.batch, c.rows, c.columns, ways, c.heads, 2}),
          normal({c.batch, c.rows, c.columns, c.heads})};
}

inline GridLinearAttention grid_of(const std::vector<at::Tensor>& x, const std::vector<GridWay>& ways) {
  return {x[0], x[1], x[2], {x[3], x[4], x[5], x[6], ways}};
}
inline GridGates gates_of(const std::vector<at::Tensor>& x, const std::vector<GridWay>& ways) {
  return {x[3], x[4], x[5], x[6], ways};
}

}  // namespace weft::ops
