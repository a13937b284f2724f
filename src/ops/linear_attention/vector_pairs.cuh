// Pairs of a chunk's tokens, by one warp each: the values' pairs q . k over their decays for y and dv, level by level and the
// diagonal apart, and P = dy . v for dq and dk, whose decays come after.
#pragma once

#include "ops/linear_attention/vector_feed.cuh"

namespace weft::kernels::vector_decay {

// The pairs of one level by one warp: a square of the lower left quarter, or of both 8 by 8 blocks on the diagonal.
template <class T, int kKey>
__device__ __forceinline__ void form_level(const T* tile, int level, T* to) {
  const int lane = threadIdx.x % 32, row = lane / 4, column = lane % 4 * 2;
  const int2 at = rows_first(lane);
  float sums[2][4] = {};
#pragma unroll
  for (int k = 0; k < kKey; k += 16) {
    uint32_t x[4];
    load_matrices(x, tile + at16(kKey, at.x, k + at.y));
    multiply_add<T>(sums[0], x, x[0], x[2]);
    multiply_add<T>(sums[1], x, x[1], x[3]);
  }
  const auto at_pair = [&](int row_block, int column_block) {
    return to + (row_block * 8 + row) * kPairRow + column_block * 8 + column;
  };
  if (level == 3) {
    *reinterpret_cast<uint32_t*>(at_pair(1, 0)) = pack<T>(sums[0][2], sums[0][3]);
  } else if (level == 0) {
    if (row == column + 1)
      *at_pair(0, 0) = from_float<T>(sums[0][0]), *at_pair(1, 1) = from_float<T>(sums[1][2]);
  } else if (level_of(row, column) == level) {
    *reinterpret_cast<uint32_t*>(at_pair(0, 0)) = pack<T>(sums[0][0], sums[0][1]);
    *reinterpret_cast<uint32_t*>(at_pair(1, 1)) = pack<T>(sums[1][2], sums[1][3]);
  }
}

// Half of the pairs of a gentle chunk, those with the 8 tokens from 8 `half` on as columns, by one warp. `rows` and `columns` are
// tiles; `own`: with the pairs on the diagonal.
template <class T, int kKey>
__device__ __forceinline__ void form_gentle(const T* rows, const T* columns, int half, bool own, T* to) {
  const int lane = threadIdx.x % 32, row = lane / 4, column = half * 8 + lane % 4 * 2;
  const int2 at = rows_first(lane);
  float sums[2][4] = {};
#pragma unroll
  for (int k = 0; k < kKey; k += 32) {
    uint32_t b[4];
    load_matrices(b, columns + at16(kKey, half * 8 + lane % 8, k + lane / 8 * 8));
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t a[4];
      load_matrices(a, rows + at16(kKey, at.x, k + i * 16 + at.y));
      multiply_add<T>(sums[i], a, b[2 * i], b[2 * i + 1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int r = row + i * 8, least = own ? r : r - 1;
    const float x = column <= least ? sums[0][2 * i] + sums[1][2 * i] : 0.f;
    const float y = column + 1 <= least ? sums[0][2 * i + 1] + sums[1][2 * i + 1] : 0.f;
    *reinterpret_cast<uint32_t*>(to + r * kPairRow + column) = pack<T>(x, y);
  }
}

// q . k of every token by one warp, weighed by `bonus` [keys] if that is given.
template <class T, int kKey, bool kBonus>
__device__ __forceinline__ void form_diagonal(const T* q, const T* k, const float* bonus, int keys,
                                              float scale, float* diagonal) {
  const int lane = threadIdx.x % 32;
  const int2 at = rows_first(lane);
  float sums[2][4] = {};
#pragma unroll
  for (int i = 0; i < kKey; i += 16) {
    uint32_t a[4], b[4];
    load_matrices(a, q + Panels<>::at(at.x, i + at.y));
    load_matrices(b, k + Panels<>::at(at.x, i + at.y));
    if (kBonus) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int channel = i + j / 2 * 8 + lane % 4 * 2;
        const float2 x = unpack<T>(a[j]);
        a[j] = channel < keys ? pack<T>(x.x * bonus[channel], x.y * bonus[channel + 1]) : 0;
      }
    }
    multiply_add<T>(sums[0], a, b[0], b[2]);
    multiply_add<T>(sums[1], a, b[1], b[3]);
  }
  const int column = lane % 4 * 2;
  if (lane / 4 == column) diagonal[column] = scale * sums[0][0], diagonal[column + 8] = scale * sums[1][2];
  if (lane / 4 == column + 1)
    diagonal[column + 1] = scale * sums[0][1], diagonal[column + 9] = scale * sums[1][3];
}

// P by one warp, summed in kChains chains.
template <class T, int kValue, class At = Swizzled<kValue>, int kChains = 1>
__device__ __forceinline__ void form_value_pairs(const T* dy, const T* v, Pairs<T> to) {
  const int lane = threadIdx.x % 32;
  const int2 at = rows_first(lane);
  float sums[2][4] = {}, second[2][4] = {};
#pragma unroll
  for (int i = 0; i < kValue; i += 16) {
    uint32_t a[4], b[4];
    load_matrices(a, dy + At::at(at.x, i + at.y));
    load_matrices(b, v + At::at(at.x, i + at.y));
    auto& to = kChains > 1 && i % 32 ? second : sums;
    multiply_add<T>(to[0], a, b[0], b[2]);
    multiply_add<T>(to[1], a, b[1], b[3]);
  }
  if (kChains > 1)
#pragma unroll
    for (int i = 0; i < 8; ++i) sums[i / 4][i % 4] += second[i / 4][i % 4];
#pragma unroll
  for (int n = 0; n < 2; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + half * 8, column = n * 8 + lane % 4 * 2;
      const float x = sums[n][2 * half], y = sums[n][2 * half + 1];
      *reinterpret_cast<uint32_t*>(to.matrix + row * kPairRow + column) = pack<T>(x, y);
      if (to.diagonal && n == half && row == column) to.diagonal[row] = x;
      if (to.diagonal && n == half && row == column + 1) to.diagonal[row] = y;
    }
}

// The bits of a register of pairs (of an 8 by 8 block on the diagonal) that belong to a level below 3.
__device__ __forceinline__ uint32_t level_mask(int level, bool reverse) {
  const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  uint32_t mask = 0;
  for (int e = 0; e < 2; ++e)
    if (level_of(reverse ? column + e : row, reverse ? row : column + e) == level)
      mask |= 0xffffu << (16 * e);
  return mask;
}

// The operand of a gentle chunk's pairs without the diagonal: rows are the tokens whose gradient it is. `strict` is the
// union of level_mask below level 3.
template <class T, bool kReverse>
__device__ __forceinline__ void load_gentle(uint32_t (&a)[4], const T* matrix, uint32_t strict) {
  const int2 by_row = rows_first(threadIdx.x % 32), by_column = columns_first(threadIdx.x % 32);
  if (kReverse) {
    load_matrices_transposed(a, matrix + by_column.x * kPairRow + by_column.y);
  } else {
    load_matrices(a, matrix + by_row.x * kPairRow + by_row.y);
  }
  a[0] &= strict, a[3] &= strict, a[kReverse ? 1 : 2] = 0;
}

// sums [16 tokens, 16 key channels from `first` on] += the chunk's own pairs, by one warp. `at` has the bytes to the elements of
// `sums` in a tile.
template <class T, int kKey, bool kReverse>
__device__ __forceinline__ void sum_pairs(const T* matrix, const char* tiles, int first,
                                          const uint32_t (&at)[2][2], float (&sums)[2][4]) {
  const int lane = threadIdx.x % 32;
  const int2 by_row = rows_first(lane), by_column = columns_first(lane);
  uint32_t pairs[4];
  if (kReverse) {
    load_matrices_transposed(pairs, matrix + by_column.x * kPairRow + by_column.y);
  } else {
    load_matrices(pairs, matrix + by_row.x * kPairRow + by_row.y);
  }
#pragma unroll
  for (int level = 0; level < kLevels; ++level) {
    const char* tile = tiles + level * kChunk * kKey * 2;
    uint32_t a[4] = {}, b[4];
    if (level == 3) {
      a[kReverse ? 2 : 1] = pairs[kReverse ? 2 : 1];
    } else {
      const uint32_t mask = level_mask(level, kReverse);
      a[0] = pairs[0] & mask, a[3] = pairs[3] & mask;
    }
    load_matrices_transposed(b, tile + 2 * at16(kKey, by_row.x, first + by_row.y));
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      float part[4] = {};
      multiply_add<T>(part, a, b[2 * n], b[2 * n + 1]);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (level == 3 && half == kReverse) continue;  // no pairs
        const float2 decay = unpack<T>(*reinterpret_cast<const uint32_t*>(tile + at[n][half]));
        sums[n][2 * half] += part[2 * half] * decay.x, sums[n][2 * half + 1] += part[2 * half + 1] * decay.y;
      }
    }
  }
}

}  // namespace weft::kernels::vector_decay
