// CPU kernels of the normalisations: one pass over a row in cache for the statistics, one or two for the
// result. The statistics are computed again in the backward, which costs less than keeping them.
#pragma once

#include <cstdint>

#include "ops/simd/isa.h"

namespace weft::kernels {

enum class Gating {
  none,
  before,
  after
};  // before: the input of the norm is x silu(gate); after: its result is gated

// Rows of `width` floats, one behind the other. Pointers that do not apply are null.
struct NormProblem {
  const float* x = nullptr;
  const float* gate = nullptr;      // same shape as x
  const float* weight = nullptr;    // [width]
  const float* bias = nullptr;      // [width]
  const float* residual = nullptr;  // forward, without gate: x + residual is normalised, and kept in `sum`
  float* sum = nullptr;
  float* y = nullptr;           // forward only
  const float* dy = nullptr;    // the rest: backward only
  const float* dsum = nullptr;  // added to dx
  float* dx = nullptr;
  float* dgate = nullptr;
  float* dweight_partial = nullptr;  // [blocks, width], one row for each block of rows
  float* dbias_partial = nullptr;
  int64_t rows = 0;
  int64_t width = 0;
  int64_t block_rows = 1;  // rows of a block; fixed by the shape so that sums do not depend on threads
  float eps = 0;
  float inverse_count = 1;  // 1 / width for a mean of squares, 1 for a sum
  bool centre = false;      // subtract the mean (layer norm); only without gate
  Gating gating = Gating::none;
};

// Normalises the rows of blocks [begin, end).
void norm_forward(simd::Isa isa, const NormProblem& p, int64_t begin, int64_t end);

// dx, dgate and the partial sums of dweight and dbias for the blocks [begin, end).
void norm_backward(simd::Isa isa, const NormProblem& p, int64_t begin, int64_t end);

// out[width] = sum over blocks of partial[blocks, width], first block first.
void norm_sum_partials(simd::Isa isa, const float* partial, int64_t blocks, int64_t width, float* out);

}  // namespace weft::kernels
