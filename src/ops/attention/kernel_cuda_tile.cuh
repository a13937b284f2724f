// What the tensor core kernels of attention share: tiles in shared memory and the arithmetic on tiles of scores.
//
// Scores of 16 rows by 8 kTiles columns lie in s[kTiles][4] as a product leaves them: lane l has rows l / 4 (entries 0
// and 1) and l / 4 + 8 (2 and 3), columns 8 j + 2 (l % 4) and the next.
#pragma once

#include "ops/attention/kernel_cuda_mask.cuh"
#include "ops/attention/kernel_cuda_softmax.cuh"

namespace weft::kernels {

// kRows rows of kWidth 16-bit numbers as panels of 64 columns, in which the 16-byte pieces of row r are permuted by
// r % 8: free of bank conflicts, and what wgmma calls the 128-byte swizzle. Starts at a multiple of 1024 bytes.
template <int kRows, int kWidth>
struct Tile {
  static constexpr int kBytes = kRows * kWidth * 2, kPanelBytes = kRows * 128;
  char* data;

  // Of the 16 bytes that begin with `column`.
  __device__ __forceinline__ char* at(int row, int column) const {
    return data + column / 64 * kPanelBytes + row * 128 + (column / 8 % 8 ^ row % 8) * 16;
  }

  // Rows [first, end) of a head, zeros past `end` and past `width`.
  template <int kThreads>
  __device__ __forceinline__ void load(const AttentionRows& x, int batch, int head, int first, int end,
                                       int width, int thread) const {
    constexpr int kPieces = kWidth / 8;
    const char* base = static_cast<const char*>(x.data) + 2 * (batch * x.batch + head * x.head);
#pragma unroll
    for (int i = 0; i < kRows * kPieces / kThreads; ++i) {
      const int piece = i * kThreads + thread, row = piece / kPieces, column = piece % kPieces * 8;
      const bool valid = first + row < end && column < width;
      copy_async16(at(row, column), valid ? base + 2 * ((first + row) * x.token + column) : base, valid);
    }
  }

  // Operand a of a product: 16 rows from `row` on, 16 columns.
  __device__ __forceinline__ void load_a(uint32_t (&r)[4], int row, int column) const {
    const int lane = threadIdx.x % 32;
    load_matrices(r, at(row + lane % 16, column + lane / 16 * 8));
  }
  // Operands b of two products that have rows [row, row + 16) of the tile as columns: r0, r1 and r2, r3.
  __device__ __forceinline__ void load_b(uint32_t (&r)[4], int row, int column) const {
    const int lane = threadIdx.x % 32;
    load_matrices(r, at(row + lane / 16 * 8 + lane % 8, column + lane / 8 % 2 * 8));
  }
  // Operands b of two products that have columns [column, column + 16) of the tile as columns.
  __device__ __forceinline__ void load_b_transposed(uint32_t (&r)[4], int row, int column) const {
    const int lane = threadIdx.x % 32;
    load_matrices_transposed(r, at(row + lane / 8 % 2 * 8 + lane % 8, column + lane / 16 * 8));
  }
};

// Columns 16 j .. 16 j + 15 of c as operand a.
template <class T, int kTiles>
__device__ __forceinline__ void as_operand(uint32_t (&a)[4], const float (&c)[kTiles][4], int j) {
  a[0] = pack<T>(c[2 * j][0], c[2 * j][1]);
  a[1] = pack<T>(c[2 * j][2], c[2 * j][3]);
  a[2] = pack<T>(c[2 * j + 1][0], c[2 * j + 1][1]);
  a[3] = pack<T>(c[2 * j + 1][2], c[2 * j + 1][3]);
}

// All of c as operands.
template <class T, int kTiles>
__device__ __forceinline__ void as_operands(uint32_t (&a)[kTiles / 2][4], const float (&c)[kTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTiles / 2; ++j) as_operand<T>(a[j], c, j);
}

// Products are turned into exponents of 2 by exponent_unit once score_value has capped and biased them.
struct Scoring {
  float unit, scale, softcap, slope;
  bool plain;  // neither cap nor bias: score_value is not needed

  __device__ __forceinline__ Scoring(const AttentionCuda& p, int head)
      : scale(p.scale),
        softcap(p.softcap),
        slope(p.slopes ? p.slopes[head] : 0.0f),
        plain(p.softcap == 0 && !p.slopes) {
    unit = plain ? p.scale * kLog2e : kLog2e;
  }

  // Of a product; `derivative` by scale times the product.
  __device__ __forceinline__ float value(float product, int32_t distance, float& derivative) const {
    float x = scale * product;
    derivative = 1;
    if (softcap > 0) {
      const float t = fast_tanh(x / softcap);
      x = softcap * t;
      derivative = 1 - t * t;
    }
    return fmaf(slope, static_cast<float>(distance), x);
  }
};

// Scores of pairs that `seen(j, i)` denies become -inf. For rules of many instructions: they are not unrolled.
template <int kTiles, class Seen>
__device__ __forceinline__ void hide_by(const Seen& seen, float (&s)[kTiles][4]) {
  uint64_t bits = 0;
  static_assert(4 * kTiles <= 64);
#pragma unroll 1
  for (int n = 0; n < 4 * kTiles; ++n) bits |= static_cast<uint64_t>(seen(n / 4, n % 4)) << n;
#pragma unroll
  for (int j = 0; j < kTiles; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (!(bits >> (4 * j + i) & 1)) s[j][i] = kMinusInfinity;
}

// Positions and segments of the slots of a tile, wherever they were put; nothing under a rule.
struct TileSlots {
  const int32_t *position, *segment;
};
__device__ __forceinline__ TileSlots tile_slots(const KeySlots& slots, int slot0) {
  return {slots.positions + slot0, slots.segments + slot0};
}

// Scores of row r become -inf but for columns [begin[r], end[r]) and, kPrefix, those below prefix[r]; columns count from
// this lane's first.
template <bool kPrefix, int kTiles>
__device__ __forceinline__ void hide_outside(const int (&begin)[2], const int (&end)[2],
                                             const int (&prefix)[2], float (&s)[kTiles][4]) {
#pragma unroll
  for (int j = 0; j < kTiles; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int r = i / 2, column = 8 * j + i % 2;
      const bool seen = (column >= begin[r] && column < end[r]) || (kPrefix && column < prefix[r]);
      if (!seen) s[j][i] = kMinusInfinity;
    }
}

// Scores of hidden pairs become -inf; rows are queries, columns key slots from slot0 on. kSimple: the mask is known to
// be so.
template <bool kSimple, int kTiles>
__device__ __forceinline__ void hide(const AttentionMask& m, int batch, const QueryLimits (&q)[2],
                                     const KeySlots& slots, int slot0, const TileSlots& here,
                                     float (&s)[kTiles][4]) {
  const int first = threadIdx.x % 4 * 2;
  if (!kSimple && !is_simple(m)) {
    hide_by([&](int j,
                int i) { return sees(m, batch, i < 2 ? q[0] : q[1], slots, slot0 + first + 8 * j + i % 2); },
            s);
    return;
  }
  if (m.rule) {
    const int base = slot0 + first, begin[2] = {q[0].first - base, q[1].first - base},
              end[2] = {q[0].high + 1 - base, q[1].high + 1 - base},
              prefix[2] = {q[0].prefix - base, q[1].prefix - base};
    if (m.sinks > 0)
      hide_outside<true>(begin, end, prefix, s);
    else
      hide_outside<false>(begin, end, prefix, s);
    return;
  }
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const int2 position = *reinterpret_cast<const int2*>(here.position + first + 8 * j);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (!in_range(q[i / 2], i % 2 ? position.y : position.x)) s[j][i] = kMinusInfinity;
  }
  if (!m.segments) return;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const int2 segment = *reinterpret_cast<const int2*>(here.segment + first + 8 * j);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if ((i % 2 ? segment.y : segment.x) != q[i / 2].segment) s[j][i] = kMinusInfinity;
  }
}

// What a lane knows of its two slots, rows of a transposed tile.
struct LaneSlots {
  int slot;
  int32_t position[2], segment[2];

  __device__ __forceinline__ LaneSlots(const KeySlots& slots, int slot)
      : slot(slot),
        position{slots.position(slot), slots.position(slot + 8)},
        segment{slots.segment(slot), slots.segment(slot + 8)} {}
};

// Of a tile of queries, as AttentionMask::limits; not under a rule.
__device__ __forceinline__ const int4* limits_at(const AttentionMask& m, int batch, int query) {
  return reinterpret_cast<const int4*>(m.limits) + int64_t{batch} * m.query_tiles * kMaskTile + query;
}

// The same as hide with slots as rows, and columns queries from query0 on, whose limits begin at `limits`.
template <bool kSimple, int kTiles>
__device__ __forceinline__ void hide_transposed(const AttentionMask& m, int batch, int head, int query0,
                                                const int4* limits, const KeySlots& slots,
                                                const LaneSlots& rows, float (&s)[kTiles][4]) {
  const int first = threadIdx.x % 4 * 2;
  if (!kSimple && !is_simple(m)) {
    hide_by(
        [&](int j, int i) {
          const QueryLimits q = query_limits(m, batch, query0 + first + 8 * j + i % 2, head);
          return sees(m, batch, q, slots, rows.slot + i / 2 * 8);
        },
        s);
    return;
  }
  if (m.rule) {
    int begin[2], end[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {  // of the queries that see the slot
      const int at = rows.position[r] - (m.keys - m.queries + query0 + first);
      begin[r] = m.causal ? at : INT_MIN;
      end[r] = m.window > 0 && rows.position[r] >= m.sinks ? at + m.window : INT_MAX;
    }
    hide_outside<false>(begin, end, begin, s);
    return;
  }
#pragma unroll
  for (int j = 0; j < kTiles; ++j)
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int4 x = limits[first + 8 * j + c];
      const QueryLimits q{x.x, x.z, x.w, static_cast<uint32_t>(x.y)};
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (!in_range(q, rows.position[r]) || (m.segments && rows.segment[r] != q.segment))
          s[j][2 * r + c] = kMinusInfinity;
    }
}

// Rows are queries, columns key slots from slot0 on: caps and biases, then hides. `full`: nothing is hidden.
template <int kTiles>
__device__ __forceinline__ void finish_scores(const AttentionCuda& p, const Scoring& scoring, int batch,
                                              const QueryLimits (&q)[2], const KeySlots& slots, int slot0,
                                              bool full, float (&s)[kTiles][4]) {
  const int column = threadIdx.x % 4 * 2;
  if (!scoring.plain) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float derivative;
        const int32_t position = slots.position(slot0 + 8 * j + column + i % 2);
        s[j][i] = scoring.value(s[j][i], position - q[i / 2].position, derivative);
      }
  }
  if (!full) hide<false>(p.mask, batch, q, slots, slot0, tile_slots(slots, slot0), s);
}

// Of scores (products of q and k) and products of dout and v come probabilities, in `s`, and gradients of scale times
// the product of q and k, in `dp`. Rows are queries, columns keys from slot0 on; dslopes: sums of the gradients by the
// slope.
template <int kTiles>
__device__ __forceinline__ void finish_gradients(const AttentionCuda& p, const Scoring& scoring, int batch,
                                                 const QueryLimits (&q)[2], const KeySlots& slots, int slot0,
                                                 bool full, const float (&lse2)[2], const float (&delta)[2],
                                                 float (&s)[kTiles][4], float (&dp)[kTiles][4],
                                                 float (&dslopes)[2]) {
  const int lane_column = slot0 + threadIdx.x % 4 * 2;
  float derivative[kTiles][4];
  if (!scoring.plain)
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int32_t position = slots.position(lane_column + 8 * j + i % 2);
        s[j][i] = scoring.value(s[j][i], position - q[i / 2].position, derivative[j][i]);
      }
  if (!full) hide<false>(p.mask, batch, q, slots, slot0, tile_slots(slots, slot0), s);
#pragma unroll
  for (int j = 0; j < kTiles; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[j][i] = fast_exp2(fmaf(s[j][i], scoring.unit, -lse2[i / 2]));
      dp[j][i] = s[j][i] * (dp[j][i] - delta[i / 2]);
    }
  if (scoring.plain) return;
#pragma unroll
  for (int j = 0; j < kTiles; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int32_t distance = slots.position(lane_column + 8 * j + i % 2) - q[i / 2].position;
      dslopes[i / 2] = fmaf(dp[j][i], static_cast<float>(distance), dslopes[i / 2]);
      dp[j][i] *= derivative[j][i];
    }
}

// The same with keys as rows, slot0 + {0, 8}, and queries as columns from query0 on, whose lse2 and delta lie in
// shared memory.
template <int kTiles>
__device__ __forceinline__ void finish_gradients_transposed(const AttentionCuda& p, const Scoring& scoring,
                                                            int batch, int head, int query0,
                                                            const KeySlots& slots, int slot0, bool full,
                                                            const float* lse2, const float* delta,
                                                            float (&s)[kTiles][4], float (&dp)[kTiles][4]) {
  const int lane_column = threadIdx.x % 4 * 2;
  float derivative[kTiles][4];
  if (!scoring.plain)
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const QueryLimits q = query_limits(p.mask, batch, query0 + 8 * j + lane_column + i % 2, head);
        s[j][i] = scoring.value(s[j][i], slots.position(slot0 + i / 2 * 8) - q.position, derivative[j][i]);
      }
  if (!full)
    hide_transposed<false>(p.mask, batch, head, query0, limits_at(p.mask, batch, query0), slots,
                           LaneSlots(slots, slot0), s);
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    const float2 base = *reinterpret_cast<const float2*>(lse2 + 8 * j + lane_column),
                 less = *reinterpret_cast<const float2*>(delta + 8 * j + lane_column);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      s[j][i] = fast_exp2(fmaf(s[j][i], scoring.unit, -(i % 2 ? base.y : base.x)));
      dp[j][i] = s[j][i] * (dp[j][i] - (i % 2 ? less.y : less.x));
      if (!scoring.plain) dp[j][i] *= derivative[j][i];
    }
  }
}

// Rows l / 4 and l / 4 + 8 of c, times factor, at to + stride * row, columns below `width`. `rows`: how many of the 16
// there are.
template <class T, int kTiles>
__device__ __forceinline__ void store_rows(T* to, int64_t stride, int rows, int width,
                                           const float (&c)[kTiles][4], const float (&factor)[2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane / 4 + 8 * r;
    if (row >= rows) continue;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const int column = 8 * j + lane % 4 * 2;
      if (column < width)
        *reinterpret_cast<uint32_t*>(to + row * stride + column) =
            pack<T>(c[j][2 * r] * factor[r], c[j][2 * r + 1] * factor[r]);
    }
  }
}

}  // namespace weft::kernels
