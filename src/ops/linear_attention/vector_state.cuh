// What warps do with their parts of a state [K, V], which stay in registers: value channels from 16 times the warp on (or
// several times 16) with all keys, or 16 key channels with all values.
#pragma once

#include "ops/linear_attention/vector_feed.cuh"

namespace weft::kernels::vector_decay {

// result += the state's reads by the rows of a tile.
template <class T, int kWidth>
__device__ __forceinline__ void read_state(const float (&state)[kWidth / 8][4], const T* tile,
                                           float (&result)[2][4]) {
  const int2 at = columns_first(threadIdx.x % 32);
  float second[2][4] = {};
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    const uint32_t a[4] = {pack<T>(state[n][0], state[n][1]), pack<T>(state[n][2], state[n][3]),
                           pack<T>(state[n + 1][0], state[n + 1][1]),
                           pack<T>(state[n + 1][2], state[n + 1][3])};
    uint32_t b[4];
    load_matrices(b, tile + at16(kWidth, at.x, n * 8 + at.y));
    auto& sums = n % 4 ? second : result;
    multiply_add<T>(sums[0], a, b[0], b[1]);
    multiply_add<T>(sums[1], a, b[2], b[3]);
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) result[i / 4][i % 4] += second[i / 4][i % 4];
}

// result += the state's reads by the rows of a tile at an address, of a warp with kTiles times 16 value channels.
template <class T, int kWidth, int kTiles>
__device__ __forceinline__ void read_states(const float (&state)[kTiles][kWidth / 8][4], uint32_t tile,
                                            const Blocks<Swizzled<kWidth>>& blocks,
                                            float (&result)[kTiles][2][4]) {
  float second[kTiles][2][4] = {};
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    uint32_t b[4];
    load_matrices(b, blocks.of(tile, n / 2, 128));
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const auto &x = state[i][n], &y = state[i][n + 1];
      const uint32_t a[4] = {pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(y[0], y[1]),
                             pack<T>(y[2], y[3])};
      auto& sums = kTiles == 1 && n % 4 ? second[i] : result[i];  // two chains where there are few
      multiply_add<T>(sums[0], a, b[0], b[1]);
      multiply_add<T>(sums[1], a, b[2], b[3]);
    }
  }
  if (kTiles == 1)
#pragma unroll
    for (int i = 0; i < 8; ++i) result[0][i / 4][i % 4] += second[0][i / 4][i % 4];
}

// The same for a tile and decays at addresses and a warp with kTiles times 16 value channels.
template <class T, int kWidth, int kTiles>
__device__ __forceinline__ void update_states(float (&state)[kTiles][kWidth / 8][4],
                                              const uint32_t (&values)[kTiles][4], uint32_t tile,
                                              const Blocks<Swizzled<kWidth>>& blocks, const float* decay) {
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    uint32_t b[4];
    load_matrices_transposed(b, blocks.of(tile, n / 2, 128));
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const float2 d = *reinterpret_cast<const float2*>(decay + (n + m) * 8);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        auto& x = state[i][n + m];
        x[0] *= d.x, x[1] *= d.y, x[2] *= d.x, x[3] *= d.y;
        multiply_add<T>(x, values[i], b[2 * m], b[2 * m + 1]);
      }
    }
  }
}

// Reads or writes a warp's part of a state [K, V].
template <int kWidth, int kTiles, class Body>
__device__ __forceinline__ void for_each_state(const Sweep& s, const Place& p, const Body& body) {
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * kTiles * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < kTiles; ++i)
#pragma unroll
    for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int k = p.first_key + n * 8 + lane % 4 * 2 + j % 2, v = first + i * 16 + j / 2 * 8;
        body(i, n, j, k * s.value_width + v, k < s.key_width && v < s.value_width);
      }
}

// A warp's rows of a state [K, V], two columns at a time.
template <int kWidth, class Body>
__device__ __forceinline__ void for_each_pair(const Body& body) {
  const int lane = threadIdx.x % 32, k = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) body(n, half, (k + half * 8) * kWidth + n * 8 + lane % 4 * 2);
}

// The same with inputs in panels, by address.
template <class T, int kWidth>
__device__ __forceinline__ void read_row_blocks(const float (&state)[kWidth / 8][4], uint32_t values,
                                                const Blocks<Panels<>>& blocks, float (&sums)[2][4]) {
  float second[2][4] = {};
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    uint32_t a[4];
    load_matrices(a, blocks.of(values, n / 2, kChunk * kPanelRowBytes));
    auto& to = n % 4 ? second : sums;
    multiply_add<T>(to[0], a, pack<T>(state[n][0], state[n][1]), pack<T>(state[n + 1][0], state[n + 1][1]));
    multiply_add<T>(to[1], a, pack<T>(state[n][2], state[n][3]), pack<T>(state[n + 1][2], state[n + 1][3]));
  }
#pragma unroll
  for (int i = 0; i < 8; ++i) sums[i / 4][i % 4] += second[i / 4][i % 4];
}
template <class T, int kKey, int kWidth>
__device__ __forceinline__ void update_row_blocks(float (&state)[kWidth / 8][4], const char* tile,
                                                  uint32_t values, const Blocks<Panels<>>& blocks,
                                                  const float* decay) {
  const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * 16;
  const int2 by_column = columns_first(lane);
  uint32_t a[4];
  load_matrices_transposed(a, tile + 2 * at16(kKey, by_column.x, first + by_column.y));
  const float d[2] = {decay[first + lane / 4], decay[first + lane / 4 + 8]};
#pragma unroll
  for (int n = 0; n < kWidth / 8; n += 2) {
    uint32_t b[4];
    load_matrices_transposed(b, blocks.of(values, n / 2, kChunk * kPanelRowBytes));
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      auto& x = state[n + m];
      x[0] *= d[0], x[1] *= d[0], x[2] *= d[1], x[3] *= d[1];
      multiply_add<T>(x, a, b[2 * m], b[2 * m + 1]);
    }
  }
}

template <class T>
__device__ __forceinline__ void store_pair(void* to, bool fp32, int64_t at, float2 x) {
  if (fp32) {
    *reinterpret_cast<float2*>(static_cast<float*>(to) + at) = x;
  } else {
    *reinterpret_cast<uint32_t*>(static_cast<T*>(to) + at) = pack<T>(x.x, x.y);
  }
}

// A warp's rows of a state [K, V] of those in device memory, two columns at a time.
template <int kWidth, class Body>
__device__ __forceinline__ void for_each_stored_pair(const Sweep& s, const Place& p, const Body& body) {
  const int lane = threadIdx.x % 32, k = p.first_key + threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
  for (int n = 0; n < kWidth / 8; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = k + half * 8, v = n * 8 + lane % 4 * 2;
      if (row < s.key_width && v < s.value_width) body(n, half, row * s.value_width + v);
    }
}

}  // namespace weft::kernels::vector_decay
