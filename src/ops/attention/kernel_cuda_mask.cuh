// Which keys a query sees, on the device.
#pragma once

#include <climits>

#include "ops/attention/kernel_cuda.h"
#include "ops/cuda/device.cuh"

namespace weft::kernels {

constexpr float kMinusInfinity = -__builtin_huge_valf();
constexpr float kLn2 = 0.6931471805599453f;

// Bytes of shared memory that a block can have on the current device: 99 KiB to 227 KiB.
inline int shared_limit() {
  int device = 0, most = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return most;
}

// What one query, as head `head`, sees; `query` is its place in [B, T], phase that of its stripe.
struct QueryLimits {
  int32_t first, prefix, segment;
  uint32_t span;
  int32_t position, high, phase;
  int64_t query;
};

__device__ __forceinline__ int32_t stripe_phase(const AttentionMask& m, int head) {
  if (m.stripe_stride == 0) return -2;
  const int64_t offset = m.stripe_offsets ? m.stripe_offsets[head] : 0;
  return static_cast<int32_t>(m.stripe_stride - 1 - offset % m.stripe_stride);
}

// Of a token of the tiles, which may stand past the last.
__device__ __forceinline__ QueryLimits query_limits(const AttentionMask& m, int batch, int token, int head) {
  const int64_t at = int64_t{batch} * m.query_tiles * kMaskTile + token;
  const int4 limits = reinterpret_cast<const int4*>(m.limits)[at];
  const int2 position = reinterpret_cast<const int2*>(m.positions)[at];
  return {limits.x,
          limits.z,
          limits.w,
          static_cast<uint32_t>(limits.y),
          position.x,
          position.y,
          stripe_phase(m, head),
          int64_t{batch} * m.queries + token};
}

// Key slots of one sequence.
struct KeySlots {
  const int32_t *position, *segment, *phase;
};

__device__ __forceinline__ KeySlots key_slots(const AttentionMask& m, int batch) {
  const int64_t slots = int64_t{m.key_tiles} * kMaskTile, all = m.batch * slots;
  const int32_t* position = m.keys + batch * slots;
  return {position, position + all, position + 2 * all};
}

__device__ __forceinline__ bool in_tree(const AttentionMask& m, int batch, int64_t query, int32_t position) {
  const int64_t bit = position - m.tree_begin[batch];
  if (bit < 0 || bit >= 64 * m.tree_words) return false;
  return static_cast<uint64_t>(m.q_tree[query * m.tree_words + bit / 64]) >> (bit % 64) & 1;
}

// By range or prefix. An empty slot's position of -1 is, as unsigned, past every range and prefix.
__device__ __forceinline__ bool in_range(const QueryLimits& q, int32_t position) {
  return static_cast<uint32_t>(position - q.first) < q.span ||
         static_cast<uint32_t>(position) < static_cast<uint32_t>(q.prefix);
}

__device__ __forceinline__ bool sees(const AttentionMask& m, int batch, const QueryLimits& q,
                                     const KeySlots& k, int slot) {
  const int32_t position = k.position[slot];
  bool seen = in_range(q, position);
  if (m.stripe_stride > 0) seen |= position >= 0 && position <= q.high && k.phase[slot] == q.phase;
  if (m.q_tree) seen |= position >= 0 && in_tree(m, batch, q.query, position);
  return seen && (!m.segments || k.segment[slot] == q.segment);
}

// Whether ranges, prefixes and segments are all there is.
__device__ __forceinline__ bool is_simple(const AttentionMask& m) {
  return !m.q_tree && m.stripe_stride == 0;
}

// tanh, within 2e-7.
__device__ __forceinline__ float fast_tanh(float x) {
  const float e = fast_exp2(2 * kLog2e * fabsf(x));
  return copysignf(1 - 2 / (1 + e), x);
}

__device__ __forceinline__ const int32_t* row_list(const AttentionMask& m, int batch, int head, int tile,
                                                   int& count) {
  const int64_t at = (int64_t{batch} * m.lists + (m.lists > 1 ? head : 0)) * m.query_tiles + tile;
  count = m.row_counts[at];
  return m.row_lists + at * m.key_tiles;
}

__device__ __forceinline__ const int32_t* key_list(const AttentionMask& m, int batch, int head, int tile,
                                                   int& count) {
  const int64_t at = (int64_t{batch} * m.lists + (m.lists > 1 ? head : 0)) * m.key_tiles + tile;
  count = m.key_counts[at];
  return m.key_lists + at * m.query_tiles;
}

// Where row `token` of head `head` stands in lse2 and delta.
__device__ __forceinline__ int64_t statistics_at(const AttentionCuda& p, int batch, int head) {
  return (int64_t{batch} * p.heads + head) * p.mask.query_tiles * kMaskTile;
}

}  // namespace weft::kernels
