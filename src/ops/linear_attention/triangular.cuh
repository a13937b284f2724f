// The inverse of a unit lower triangular 64x64 matrix, to about 16 bits or better.
#pragma once

#include "ops/linear_attention/tiles.cuh"

namespace weft::kernels {

constexpr int kTriangularStride = 68;  // floats from row to row, in shared memory

// Operands of 16x16 parts of a row-major float matrix.
template <class T>
__device__ __forceinline__ void split_left(SplitOperand& a, const float* m, int row, int column) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = *reinterpret_cast<const float2*>(m + (row + i % 2 * 8 + lane / 4) * kTriangularStride +
                                                      column + i / 2 * 8 + lane % 4 * 2);
    split<T>(a.high[i], a.low[i], x.x, x.y);
  }
}
template <class T>
__device__ __forceinline__ void split_right(SplitOperand& b, const float* m, int row, int column) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float* x = m + (row + i % 2 * 8 + lane % 4 * 2) * kTriangularStride + column + i / 2 * 8 + lane / 4;
    split<T>(b.high[i], b.low[i], x[0], x[kTriangularStride]);
  }
}
// What a product left as the left operand of the next.
template <class T>
__device__ __forceinline__ void split_product(SplitOperand& a, const float (&c)[2][4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) split<T>(a.high[i], a.low[i], c[i / 2][i % 2 * 2], c[i / 2][i % 2 * 2 + 1]);
}
__device__ __forceinline__ void store_negative(float* m, int row, int column, const float (&c)[2][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    *reinterpret_cast<float2*>(m + (row + i % 2 * 8 + lane / 4) * kTriangularStride + column + i / 2 * 8 +
                               lane % 4 * 2) = make_float2(-c[i / 2][i % 2 * 2], -c[i / 2][i % 2 * 2 + 1]);
}

// The 16x16 block at (first, first) of I + m becomes its inverse, by substitution: a lane solves for one column.
__device__ __forceinline__ void invert_diagonal(float* m, int first) {
  const int column = threadIdx.x % 16;
  float x[16];
#pragma unroll
  for (int r = 0; r < 16; ++r) {
    float sum = r == column ? 1.f : 0.f;
#pragma unroll
    for (int i = 0; i < r; ++i) sum -= m[(first + r) * kTriangularStride + first + i] * x[i];
    x[r] = sum;
  }
  __syncwarp();
  if (threadIdx.x % 32 < 16)
#pragma unroll
    for (int r = 0; r < 16; ++r) m[(first + r) * kTriangularStride + first + column] = x[r];
}

// m [64, 64], zero on and above the diagonal, becomes (I + m)^-1 on and below the diagonal's blocks; other blocks are not read
// nor written. By the first 4 warps of those that `barrier` joins, all of which call it; each of those has written its own 16
// rows; the caller synchronises before others read.
// With blocks, [[A, 0], [B, C]]^-1 = [[A^-1, 0], [-C^-1 B A^-1, C^-1]]: first from 16 to 32, then to 64.
template <class T, class Barrier>
__device__ __forceinline__ void invert_unit_lower(float* m, const Barrier& barrier) {
  const int warp = threadIdx.x / 32;
  if (warp < 4) {
    __syncwarp();
    invert_diagonal(m, 16 * warp);
  }
  barrier();
  if (warp == 1 || warp == 3) {
    const int row = 16 * warp, column = row - 16;
    float product[2][4] = {}, result[2][4] = {};
    SplitOperand a, b;
    split_left<T>(a, m, row, row);
    split_right<T>(b, m, row, column);
    multiply_add_pair<T>(product[0], product[1], a, b);
    split_product<T>(a, product);
    split_right<T>(b, m, column, column);
    multiply_add_pair<T>(result[0], result[1], a, b);
    __syncwarp();
    store_negative(m, row, column, result);
  }
  barrier();
  // Warp: the 16 rows `row` and the 16 columns `column` of the lower left quarter.
  const int row = 32 + warp % 2 * 16, column = warp / 2 * 16;
  float result[2][4] = {};
  for (int inner = column; inner < 32; inner += 16) {
    SplitOperand a, b;
    float product[2][4] = {};
    for (int from = 32; from <= row; from += 16) {
      split_left<T>(a, m, row, from);
      split_right<T>(b, m, from, inner);
      multiply_add_pair<T>(product[0], product[1], a, b);
    }
    split_product<T>(a, product);
    split_right<T>(b, m, inner, column);
    multiply_add_pair<T>(result[0], result[1], a, b);
  }
  barrier();
  if (warp < 4) store_negative(m, row, column, result);
}

template <class T>
__device__ __forceinline__ void invert_unit_lower(float* m) {
  invert_unit_lower<T>(m, [] { __syncthreads(); });
}

}  // namespace weft::kernels
