// The sweep of the scalar form: what a warpgroup does with the products of a chunk.
#pragma once

#include "ops/linear_attention/scalar_feed.cuh"

namespace weft::kernels::scalar {
namespace {

// A warpgroup's part: head, slice, and where its lanes' numbers of a 64 x 64 product lie: rows `row` and row + 8,
// columns 8 j + column and the next.
struct Part {
  int head, slice, thread, warp, lane, row, column, bar;
  __device__ Part(const Role& role, int unit) {
    head = unit / role.slices, slice = unit % role.slices;
    thread = threadIdx.x % kGroupThreads, warp = __shfl_sync(0xffffffff, thread / 32, 0), lane = thread % 32;
    row = 16 * warp + lane / 4, column = 2 * (lane % 4);
    bar = 1 + threadIdx.x / kGroupThreads;
  }
  __device__ void sync() const { named_barrier(bar, kGroupThreads); }
  // Of a panel, where this lane's matrix row begins that holds columns 8 j to 8 j + 15 of the warp's 16 rows.
  __device__ char* matrix_row(char* panel, int j) const {
    return panel + panel_offset(16 * warp + lane % 16, j + lane / 16);
  }
};

template <int kPanels, class Body>
__device__ __forceinline__ void for_state(const Role& role, const States& states, const Part& part,
                                          int64_t block, float (&state)[kPanels][32], const Body& body) {
  float* data = states.data + block * role.depth * role.width;
#pragma unroll
  for (int m = 0; m < kPanels; ++m) {
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int row = 64 * m + part.row + (i & 2) * 4,
                column = part.slice * kSlice + i / 4 * 8 + part.column + (i & 1);
      if (row < role.depth && column < role.width)
        body(data[static_cast<int64_t>(row) * states.row + static_cast<int64_t>(column) * states.column],
             state[m][i]);
    }
  }
}

// A 64 x 64 product, rounded, into a panel.
template <class T>
__device__ __forceinline__ void store_rounded(const Part& part, const float (&x)[32], char* panel) {
#pragma unroll
  for (int j = 0; j < 8; j += 2)
    store_matrices(part.matrix_row(panel, j), pack<T>(x[4 * j], x[4 * j + 1]),
                   pack<T>(x[4 * j + 2], x[4 * j + 3]), pack<T>(x[4 * j + 4], x[4 * j + 5]),
                   pack<T>(x[4 * j + 6], x[4 * j + 7]));
}

// Masks and decays the pairs of a chunk and packs them as the left operand of the product with c. `diagonal`: the pairs
// (row, row) and (row + 8, row + 8) as packed.
template <class T>
__device__ __forceinline__ void decay_pairs(const Part& part, const Gates& gates, bool reverse,
                                            const float (&pairs)[32], uint32_t (&packed)[4][4],
                                            float (&diagonal)[2]) {
  float exponent[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float4 x = gates.pairs[(part.row + 8 * i) / 2];
    exponent[i] = part.row % 2 ? x.y : x.x;
  }
  const int sign = reverse ? -1 : 1;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    uint32_t* to = &packed[j / 2][j % 2 * 2];
    to[0] = to[1] = 0;
    const int side = (j / 2 - part.warp) * sign;  // of the diagonal: positive on the one without pairs
    if (side > 0) continue;
    const float4 x = gates.pairs[4 * j + part.lane % 4];
    float kept[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      kept[i] = pairs[4 * j + i] * (fast_exp2(exponent[i / 2] - (i & 1 ? x.y : x.x)) * (i & 1 ? x.w : x.z));
    if (side == 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if ((part.row + (i & 2) * 4 - 8 * j - part.column - (i & 1)) * sign < 0) kept[i] = 0;
    }
    to[0] = pack<T>(kept[0], kept[1]), to[1] = pack<T>(kept[2], kept[3]);
    if (side == 0) {
      const float2 own = unpack<T>(to[j % 2]);
      diagonal[j % 2] = part.row % 2 ? own.y : own.x;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
    diagonal[i] = __shfl_sync(0xffffffff, diagonal[i], part.lane / 4 * 4 + part.lane / 8);
}

__device__ __forceinline__ uint32_t multiply_add_pairs(uint32_t a, uint32_t b, uint32_t c, bf16) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
__device__ __forceinline__ uint32_t multiply_add_pairs(uint32_t a, uint32_t b, uint32_t c, fp16) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// Rows 64 of b', columns the 16 tokens from 16 k on, times the factor of each token: a left operand.
template <class T>
__device__ __forceinline__ void load_columns(const Part& part, const uint2 (&factors)[4][2],
                                             const char* panel, int k, uint32_t (&packed)[4]) {
  const int token = 16 * k + part.lane / 16 * 8 + part.lane % 8;
  load_matrices_transposed(packed, panel + panel_offset(token, 2 * part.warp + part.lane / 8 % 2));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint2 factor = factors[k][i / 2];
    packed[i] = multiply_add_pairs(packed[i], factor.x, multiply_add_pairs(packed[i], factor.y, 0, T{}), T{});
  }
}

__device__ __forceinline__ void load_factors(const Part& part, const Gates& gates, uint2 (&factors)[4][2]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) factors[i / 2][i % 2] = gates.columns[4 * i + part.lane % 4];
}

template <class T>
__device__ __forceinline__ void store_dots(const Sweep& p, const Role& role, const Part& part, int batch,
                                           int token, const float (&out)[32], const float (&diagonal)[2],
                                           const char* extra, const char* c) {
  // Reversed, the factor of a row is its write strength, which dots leave out.
  const float factor = role.reverse ? 1 : p.scale;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float dot = 0, own = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int at = panel_offset(part.row + 8 * i, j) + 2 * part.column;
      const float2 x = unpack<T>(*reinterpret_cast<const uint32_t*>(extra + at));
      const float2 y = unpack<T>(*reinterpret_cast<const uint32_t*>(c + at));
      dot += out[4 * j + 2 * i] * x.x + out[4 * j + 2 * i + 1] * x.y;
      own += x.x * y.x + x.y * y.y;
    }
    dot = warp_sum<4>(dot), own = warp_sum<4>(own);
    const int t = token + part.row + 8 * i;
    const int64_t at =
        ((static_cast<int64_t>(batch) * p.heads + part.head) * role.slices + part.slice) * p.tokens + t;
    if (part.lane % 4 != 0 || t >= p.tokens) continue;
    if (role.dots) role.dots[at] = factor * dot;
    if (role.off_diagonal) role.off_diagonal[at] = factor * (dot - diagonal[i] * own);
  }
}

// The sum over the state of its product with the checkpoint, warp by warp.
template <class T, int kPanels>
__device__ __forceinline__ void multiply_checkpoint(const Part& part, const float (&state)[kPanels][32],
                                                    const char* checkpoint, float* products) {
  float sum = 0;
#pragma unroll
  for (int m = 0; m < kPanels; ++m) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int row = part.row + i % 2 * 8;
      const char* at = checkpoint + m * kChunk * kPanelRowBytes + panel_offset(row, i / 2) + 2 * part.column;
      const float2 x = unpack<T>(*reinterpret_cast<const uint32_t*>(at));
      sum += state[m][i / 2 * 4 + i % 2 * 2] * x.x + state[m][i / 2 * 4 + i % 2 * 2 + 1] * x.y;
    }
  }
  sum = warp_sum(sum);
  if (part.lane == 0) products[part.warp] = sum;
}

}  // namespace
}  // namespace weft::kernels::scalar
