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

// What four warps exchange while they invert I + m, m [64, 64] strictly lower triangular; warp w has rows 16 w to 16 w + 15.
template <class T>
struct InverseTiles {
  static constexpr int kStride = 24;  // floats
  float diagonal[4]
                [16 *
                 kStride];  // m's blocks on the diagonal, then in two terms their inverses, tiles of 16 rows
  T below[6][2 * 256];      // in two terms -m's other blocks, row after row, likewise

  __device__ T* inverse(int row) { return reinterpret_cast<T*>(diagonal[row]); }
  __device__ T* block(int row, int column) { return below[row * (row - 1) / 2 + column]; }

  // A pair of m's numbers, r and c within the block: of one on the diagonal, on and above which they may be anything, and of
  // one below.
  __device__ __forceinline__ void put_diagonal(int row, int r, int c, float x, float y) {
    *reinterpret_cast<float2*>(diagonal[row] + r * kStride + c) = make_float2(x, y);
  }
  __device__ __forceinline__ void put_below(int row, int column, int r, int c, float x, float y) {
    uint32_t high, low;
    split<T>(high, low, -x, -y);
    auto* to = reinterpret_cast<uint32_t*>(piece<16>(block(row, column), r, c / 8) + c % 8);
    to[0] = high, to[128] = low;
  }
};

// The warp's block on the diagonal becomes its inverse, by substitution: a lane solves for one row.
template <class T>
__device__ __forceinline__ void invert_diagonal(InverseTiles<T>& s, int warp) {
  const int lane = threadIdx.x % 32, row = lane % 16;
  const float* m = s.diagonal[warp];
  float x[16];
#pragma unroll
  for (int c = 0; c < 16; ++c) x[c] = c == row ? 1.f : 0.f;
#pragma unroll
  for (int i = 15; i > 0; --i)
#pragma unroll
    for (int c = 0; c < i; c += 4) {
      const float4 y = *reinterpret_cast<const float4*>(m + i * InverseTiles<T>::kStride + c);
      x[c] -= y.x * x[i];
      if (c + 1 < i) x[c + 1] -= y.y * x[i];
      if (c + 2 < i) x[c + 2] -= y.z * x[i];
      if (c + 3 < i) x[c + 3] -= y.w * x[i];
    }
  __syncwarp();
  uint32_t packed[8];
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    uint32_t high, low;
    split<T>(high, low, x[2 * n], x[2 * n + 1]);
    packed[n] = lane < 16 ? high : low;
  }
  T* to = s.inverse(warp) + lane / 16 * 256;
#pragma unroll
  for (int n = 0; n < 2; ++n)
    *reinterpret_cast<uint4*>(piece<16>(to, row, n)) =
        make_uint4(packed[4 * n], packed[4 * n + 1], packed[4 * n + 2], packed[4 * n + 3]);
}

// The warp's rows of (I + m)^-1 from the diagonal on to the left, after all warps have put their blocks and inverted those
// on the diagonal: store(column, block) gets the blocks as left operands. With T the inverse, D its blocks on the diagonal:
//   T[row, column] = sum over column < k <= row of T[row, k] (-m)[k, column], times D[column]
template <class T, class Store>
__device__ __forceinline__ void invert_rows(InverseTiles<T>& s, int warp, const Store& store) {
  const auto load = [](auto& x, const auto& operand, const T* tile) {
    operand(x.high, tile), operand(x.low, tile + 256);
  };
  const auto to_left = [](uint32_t(&x)[4], const T* tile) { left<16>(x, tile, 0, 0); };
  const auto to_right = [](uint32_t(&x)[4], const T* tile) { right<16>(x, tile, 0, 0); };
  SplitOperand x[4], b;
  load(x[0], to_left, s.inverse(warp));
  store(warp, x[0]);
#pragma unroll
  for (int d = 1; d < 4; ++d) {
    if (d > warp) break;
    const int column = warp - d;
    float sum[2][4] = {}, result[2][4] = {};
#pragma unroll
    for (int e = 0; e < d; ++e) {
      load(b, to_right, s.block(warp - e, column));
      multiply_add_pair<T>(sum[0], sum[1], x[e], b);
    }
    SplitOperand a;
    split_product<T>(a, sum);
    load(b, to_right, s.inverse(column));
    multiply_add_pair<T>(result[0], result[1], a, b);
    split_product<T>(x[d], result);
    store(column, x[d]);
  }
}

}  // namespace weft::kernels
