// Which keys a query sees, on the device.
#pragma once

#include <climits>

#include "ops/attention/kernel_cuda.h"
#include "ops/cuda/device.cuh"

namespace weft::kernels {

constexpr float kMinusInfinity = -__builtin_huge_valf();
constexpr float kLn2 = 0.6931471805599453f;

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
  if (m.rule) {
    const int position = max(m.keys - m.queries + token, -1), high = m.causal ? position : m.keys - 1,
              low = m.window > 0 ? max(position - m.window, -1) : -1;
    const bool there = token < m.queries;
    return {low + 1,  there ? min(m.sinks, high + 1) : 0,
            0,        there ? static_cast<uint32_t>(max(high - low, 0)) : 0u,
            position, high,
            -2,       int64_t{batch} * m.queries + token};
  }
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

// Key slots of one sequence; under a rule without tables.
struct KeySlots {
  const int32_t *positions, *segments, *phases;
  int keys;

  __device__ __forceinline__ int32_t position(int slot) const {
    return positions ? positions[slot] : slot < keys ? slot : -1;
  }
  __device__ __forceinline__ int32_t segment(int slot) const { return segments ? segments[slot] : 0; }
};

__device__ __forceinline__ KeySlots key_slots(const AttentionMask& m, int batch) {
  if (m.rule) return {nullptr, nullptr, nullptr, m.keys};
  const int64_t slots = int64_t{m.key_tiles} * kMaskTile, all = m.batch * slots;
  const int32_t* position = m.slots + batch * slots;
  return {position, position + all, position + 2 * all, m.keys};
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
  const int32_t position = k.position(slot);
  bool seen = in_range(q, position);
  if (m.stripe_stride > 0) seen |= position >= 0 && position <= q.high && k.phases[slot] == q.phase;
  if (m.q_tree) seen |= position >= 0 && in_tree(m, batch, q.query, position);
  return seen && (!m.segments || k.segment(slot) == q.segment);
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

__device__ __forceinline__ int tiles_of(int count) { return (count + kMaskTile - 1) / kMaskTile; }
__device__ __forceinline__ int between(int x, int low, int high) { return min(max(x, low), high); }

// Run number `index` of what a tile of queries sees under a rule: sinks, then the range of its positions. May be empty.
constexpr int kRowRuns = 5, kKeyRuns = 3;
__device__ inline TileRun row_run(const AttentionMask& m, int tile, int index) {
  const int offset = m.keys - m.queries, last = min(tile * kMaskTile + kMaskTile, m.queries) - 1;
  const int at[2] = {max(offset + tile * kMaskTile, -1), max(offset + last, -1)};
  int low[2], high[2];  // of the first and of the last query
  for (int i = 0; i < 2; ++i) {
    high[i] = m.causal ? at[i] : m.keys - 1;
    low[i] = m.window > 0 ? max(at[i] - m.window, -1) : -1;
  }
  const int sinks_full = min(m.sinks, high[0] + 1) / kMaskTile, sinks = tiles_of(min(m.sinks, high[1] + 1));
  const int begin = max((low[0] + 1) / kMaskTile, sinks), end = max(tiles_of(high[1] + 1), begin);
  const int full = between(tiles_of(low[1] + 1), begin, end),
            full_end = between((high[0] + 1) / kMaskTile, full, end);
  switch (index) {
    case 0:
      return {1, sinks_full};
    case 1:
      return {2 * sinks_full, sinks};
    case 2:
      return {2 * begin, full};
    case 3:
      return {2 * full + 1, full_end};
    default:
      return {2 * full_end, end};
  }
}

// The same of the queries that see a tile of keys.
__device__ inline TileRun key_run(const AttentionMask& m, int tile, int index) {
  const int offset = m.keys - m.queries, key = tile * kMaskTile, last = min(key + kMaskTile, m.keys) - 1;
  int count = m.queries, count_all = m.queries;  // of queries up to the last that sees some, or all
  if (m.window > 0 && m.sinks <= key) count = between(last + m.window - offset, 0, m.queries);
  if (m.window > 0 && m.sinks <= last) count_all = between(key + m.window - offset, 0, m.queries);
  const int begin = m.causal ? max(key - offset, 0) / kMaskTile : 0, end = max(tiles_of(count), begin);
  int full = begin, full_end = begin;
  if (last == key + kMaskTile - 1) {
    full = m.causal ? between(tiles_of(max(last - offset, 0)), begin, end) : begin;
    full_end = between(count_all == m.queries ? end : count_all / kMaskTile, full, end);
  }
  switch (index) {
    case 0:
      return {2 * begin, full};
    case 1:
      return {2 * full + 1, full_end};
    default:
      return {2 * full_end, end};
  }
}

// The steps of a tile of queries over keys, or of a tile of keys over the queries of its heads: kParts parts of every
// tile in the runs.
template <int kParts>
struct Walk {
  const AttentionMask* mask;
  const TileRun* list = nullptr;
  int batch, tile, head, end_head, run = -1, runs = 0, at = 0, end = 0, part = 0;
  bool by_row, all = false;

  __device__ __forceinline__ Walk(const AttentionMask& m, bool by_row, int batch, int tile, int head,
                                  int heads)
      : mask(&m), batch(batch), tile(tile), head(head), end_head(head + heads), by_row(by_row) {
    open();
    next_run();
  }
  // Of kMaskTile / kParts queries or slots: the first, for which head, and whether all pairs are seen.
  struct Step {
    int first, head;
    bool full, there;
  };
  __device__ __forceinline__ Step step() const { return {first(), head, all, !done()}; }
  __device__ __forceinline__ bool done() const { return head >= end_head; }
  __device__ __forceinline__ int first() const { return at * kMaskTile + part * (kMaskTile / kParts); }
  __device__ __forceinline__ bool full() const { return all; }
  __device__ __forceinline__ void next() {
    if (++part < kParts) return;
    part = 0;
    if (++at >= end) next_run();
  }
  // Of whole tiles, from the first part of one on.
  __device__ __forceinline__ void skip(int tiles) {
    while (tiles > 0 && !done()) {
      const int here = min(tiles, end - at);
      at += here, tiles -= here;
      if (at >= end) next_run();
    }
  }
  __device__ __forceinline__ int tiles_left() const {
    int tiles = 0;
    for (Walk rest = *this; !rest.done(); rest.next_run()) tiles += rest.end - rest.at;
    return tiles;
  }

 private:
  __device__ __forceinline__ void open() {
    run = -1;
    if (mask->rule) {
      runs = by_row ? kRowRuns : kKeyRuns;
      return;
    }
    const int64_t index = (int64_t{batch} * mask->lists + (mask->lists > 1 ? head : 0)) *
                              (by_row ? mask->query_tiles : mask->key_tiles) +
                          tile;
    runs = (by_row ? mask->row_counts : mask->key_counts)[index];
    list = by_row ? mask->row_runs + index * mask->row_most : mask->key_runs + index * mask->key_most;
  }
  __device__ __forceinline__ void next_run() {
    do {
      while (++run >= runs) {
        if (++head >= end_head) return;
        open();
      }
      const TileRun next = !mask->rule ? list[run]
                           : by_row    ? row_run(*mask, tile, run)
                                       : key_run(*mask, tile, run);
      at = next.begin >> 1, end = next.end, all = next.begin & 1;
    } while (at >= end);
  }
};

// Where row `token` of head `head` stands in lse2 and delta.
__device__ __forceinline__ int64_t statistics_at(const AttentionCuda& p, int batch, int head) {
  return (int64_t{batch} * p.heads + head) * p.mask.query_tiles * kMaskTile;
}

}  // namespace weft::kernels
