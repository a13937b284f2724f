// What the backward kernels for Hopper share: stages, the thread that feeds them, arithmetic on scores, the two passes.
#pragma once

#include "ops/attention/kernel_cuda_hopper.cuh"

namespace weft::kernels {

constexpr int kThreads = 384;

// What passes by in a stage: the first row + 2 if no other follows for who uses it + 1 if all pairs are seen, and the
// head of queries.
struct PassingStep {
  int32_t what, head;

  __device__ __forceinline__ int first() const { return what & ~3; }
  __device__ __forceinline__ bool last() const { return what & 2; }
  __device__ __forceinline__ bool full() const { return what & 1; }
};

// The steps of a walk over whole tiles, kParts of each, or those of a tile of hidden pairs if it has none. Calls
// load(n, first, head), then announce(n, step); what follows is found out between the two. Users take every kTurns-th.
template <int kParts, int kTurns, class Load, class Announce>
__device__ __forceinline__ void for_each_step(Walk<1> walk, int head, const Load& load,
                                              const Announce& announce) {
  for (int n = 0; n == 0 || !walk.done();) {
    PassingStep step{0, head};
    if (!walk.done()) step = {walk.first() + walk.full(), walk.head};
#pragma unroll
    for (int part = 0; part < kParts; ++part, ++n) {
      load(n, step.first(), step.head);
      if (part == kParts - kTurns) {
        if (!walk.done()) walk.next();
        if (walk.done()) step.what |= 2;
      }
      announce(n, step);
      step.what += kMaskTile / kParts;
    }
  }
}

template <int kStages>
struct Barriers {
  uint64_t own, full[kStages], empty[kStages];
  PassingStep steps[kStages];  // written before a stage is full

  // `users`: warpgroups that use every stage; each of their warps hands it back.
  __device__ __forceinline__ void init(int users) {
    barrier_init(&own, 1);
    for (int i = 0; i < kStages; ++i) barrier_init(&full[i], 1), barrier_init(&empty[i], 4 * users);
    barrier_init_fence();
  }
  __device__ __forceinline__ void wait_full(int n) { barrier_wait(&full[n % kStages], n / kStages & 1); }
  // A stage is full when this was called and its bytes are there.
  __device__ __forceinline__ void announce(int n, const PassingStep& step) {
    steps[n % kStages] = step;
    barrier_arrive(&full[n % kStages]);
  }
  __device__ __forceinline__ void wait_empty(int n) {
    barrier_wait(&empty[n % kStages], (n / kStages & 1) ^ 1);
  }
  // By all of a warp that is done with step n.
  __device__ __forceinline__ void hand_back(int n) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) barrier_arrive(&empty[n % kStages]);
  }
};

__device__ __forceinline__ void expect(uint64_t* barrier, int bytes) {
  barrier_expect(barrier, bytes);
  barrier_arrive(barrier);
}

struct Maps {
  CUtensorMap own_first, own_second, first, second, out_first, out_second;
};

// Two tiles of kOwnRows rows that stay, and stages of two tiles of kStep rows that pass by, each with kMoreOfRow bytes of
// what is known of each of its rows.
template <int kOwnRows, int kWidth, int kStepRows, int kStageCount, int kMoreOfRow>
struct Layout {
  using Own = Tile<kOwnRows, kWidth>;
  using Passing = Tile<kStepRows, kWidth>;
  static constexpr int kRows = kOwnRows, kStep = kStepRows, kStages = kStageCount, kMore = kStep * kMoreOfRow;
  static constexpr int kStageBytes = 2 * Passing::kBytes + kMore;
  static constexpr int kBytes = 2 * Own::kBytes + kStages * kStageBytes + 1024;  // and alignment
  char* memory;

  __device__ Own own_first() const { return {memory}; }
  __device__ Own own_second() const { return {memory + Own::kBytes}; }
  __device__ Passing first(int n) const {
    return {memory + 2 * Own::kBytes + 2 * (n % kStages) * Passing::kBytes};
  }
  __device__ Passing second(int n) const { return {first(n).data + Passing::kBytes}; }
  __device__ char* more(int n) const {
    return memory + 2 * Own::kBytes + 2 * kStages * Passing::kBytes + n % kStages * kMore;
  }
};
// Keys pass queries with positions and segments, queries pass keys with limits, lse2 and delta.
template <int kRows, int kWidth, int kStep, int kStages>
using LayoutOfQueries = Layout<kRows, kWidth, kStep, kStages, 8>;
template <int kRows, int kWidth, int kStep, int kStages>
using LayoutOfKeys = Layout<kRows, kWidth, kStep, kStages, 24>;

template <class Layout>
__device__ __forceinline__ void feed_own(const Layout& shared, const Maps& maps, uint64_t* full, int head,
                                         int first, int batch) {
  expect(full, 2 * Layout::Own::kBytes);
  copy_tile(shared.own_first(), maps.own_first, full, head, first, batch);
  copy_tile(shared.own_second(), maps.own_second, full, head, first, batch);
}

// By one thread: queries from `first` on and their gradients, then the keys and values that pass them.
template <int kTurns, class Layout>
__device__ __forceinline__ void feed_queries(const AttentionCuda& p, const Maps& maps, const Layout& shared,
                                             Barriers<Layout::kStages>& barriers, int head, int first,
                                             int batch) {
  constexpr int kStep = Layout::kStep;
  feed_own(shared, maps, &barriers.own, head, first, batch);
  const int key_head = head / p.group();
  const Walk<1> walk(p.mask, true, batch, first / kMaskTile, head, 1);
  const auto load = [&](int n, int row, int) {
    barriers.wait_empty(n);
    uint64_t* const full = &barriers.full[n % Layout::kStages];
    barrier_expect(full, Layout::kStageBytes - (p.mask.rule ? 8 * kStep : 0));
    if (!p.mask.rule) {
      const TileSlots slots = tile_slots(key_slots(p.mask, batch), row);
      copy_bytes(shared.more(n), slots.position, 4 * kStep, full);
      copy_bytes(shared.more(n) + 4 * kStep, slots.segment, 4 * kStep, full);
    }
    copy_tile(shared.first(n), maps.first, full, key_head, row, batch);
    copy_tile(shared.second(n), maps.second, full, key_head, row, batch);
  };
  for_each_step<kMaskTile / kStep, kTurns>(
      walk, head, load, [&](int n, const PassingStep& step) { barriers.announce(n, step); });
}

// By one thread: keys from `first` on and their values, then the queries that pass them and their gradients.
template <class Layout>
__device__ __forceinline__ void feed_keys(const AttentionCuda& p, const Maps& maps, const Layout& shared,
                                          Barriers<Layout::kStages>& barriers, int key_head, int first,
                                          int batch) {
  constexpr int kStep = Layout::kStep;
  feed_own(shared, maps, &barriers.own, key_head, first, batch);
  const int head = key_head * p.group();
  const Walk<1> walk(p.mask, false, batch, first / kMaskTile, head, p.group());
  const auto load = [&](int n, int row, int row_head) {
    barriers.wait_empty(n);
    uint64_t* const full = &barriers.full[n % Layout::kStages];
    barrier_expect(full, Layout::kStageBytes - (p.mask.rule ? 16 * kStep : 0));
    const int64_t statistics = statistics_at(p, batch, row_head) + row;
    copy_tile(shared.first(n), maps.first, full, row_head, row, batch);
    if (!p.mask.rule) copy_bytes(shared.more(n), limits_at(p.mask, batch, row), 16 * kStep, full);
    copy_bytes(shared.more(n) + 16 * kStep, p.lse2 + statistics, 4 * kStep, full);
    copy_tile(shared.second(n), maps.second, full, row_head, row, batch);
    copy_bytes(shared.more(n) + 20 * kStep, p.delta + statistics, 4 * kStep, full);
  };
  for_each_step<kMaskTile / kStep, 1>(walk, head, load,
                                      [&](int n, const PassingStep& step) { barriers.announce(n, step); });
}

// A lane's queries `row` and row + 8.
struct LaneQueries {
  QueryLimits limits[2];
  float lse2[2], delta[2];

  __device__ __forceinline__ LaneQueries(const AttentionCuda& p, int batch, int head, int row)
      : limits{query_limits(p.mask, batch, row, head), query_limits(p.mask, batch, row + 8, head)} {
    const int64_t at = statistics_at(p, batch, head) + row;
    lse2[0] = p.lse2[at], lse2[1] = p.lse2[at + 8];
    delta[0] = p.delta[at], delta[1] = p.delta[at + 8];
  }
  // Scores become probabilities.
  template <int kTiles>
  __device__ __forceinline__ void exponentials(float unit, float (&s)[kTiles][4]) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] = fast_exp2(fmaf(s[j][i], unit, -lse2[i / 2]));
  }
  // Of probabilities and products of dout and v the gradients of scores, as operands.
  template <class T, int kTiles>
  __device__ __forceinline__ void gradients(uint32_t (&ds)[kTiles / 2][4], float (&s)[kTiles][4],
                                            const float (&dp)[kTiles][4]) const {
#pragma unroll
    for (int j = 0; j < kTiles; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] *= dp[j][i] - delta[i / 2];
    as_operands<T>(ds, s);
  }
};

// What is known of the queries of a stage, which are columns of scores.
template <int kStep>
struct PassingQueries {
  const int4* limits;
  const float *lse2, *delta;  // from this lane's first column on

  __device__ __forceinline__ explicit PassingQueries(const char* more)
      : limits(reinterpret_cast<const int4*>(more)),
        lse2(reinterpret_cast<const float*>(limits + kStep) + threadIdx.x % 4 * 2),
        delta(lse2 + kStep) {}
  __device__ __forceinline__ void exponentials(float unit, float (&s)[kStep / 8][4]) const {
#pragma unroll
    for (int j = 0; j < kStep / 8; ++j) {
      const float2 base = *reinterpret_cast<const float2*>(lse2 + 8 * j);
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] = fast_exp2(fmaf(s[j][i], unit, -(i % 2 ? base.y : base.x)));
    }
  }
  // dp, products of dout and v, become the gradients of scores.
  __device__ __forceinline__ void gradients(const float (&s)[kStep / 8][4], float (&dp)[kStep / 8][4]) const {
#pragma unroll
    for (int j = 0; j < kStep / 8; ++j) {
      const float2 less = *reinterpret_cast<const float2*>(delta + 8 * j);
#pragma unroll
      for (int i = 0; i < 4; ++i) dp[j][i] = s[j][i] * (dp[j][i] - (i % 2 ? less.y : less.x));
    }
  }
};

// c, times factor, to device memory by way of rows [row, row + 64) of a tile that this warpgroup alone still uses. The
// tile's first row is row `first` of the head.
template <class T, int kRows, int kWidth>
__device__ __forceinline__ void store_tile(const Tile<kRows, kWidth>& by, int row,
                                           const float (&c)[kWidth / 8][4], float factor,
                                           const CUtensorMap& map, int head, int first, int batch,
                                           int width) {
  const float factors[2] = {factor, factor};
  write_rows<T>(by, row + threadIdx.x % 128 / 32 * 16, c, factors);
  async_fence();
  named_barrier(threadIdx.x / 128, 128);
  if (threadIdx.x % 128 != 0) return;
#pragma unroll
  for (int column = 0; column < kWidth; column += 64)
    if (column < width)
      store_panel(&map, by.data + column / 64 * by.kPanelBytes + row * 128, column, head, first + row, batch);
  store_commit();
}

using BackwardKernel = void(AttentionCuda, Maps);

inline CudaStatus launch(BackwardKernel* kernel, const AttentionCuda& p, const Maps& maps, int bytes,
                         dim3 grid, void* stream) {
  if (const auto error = allow_shared(kernel, bytes)) return status_of(error);
  kernel<<<grid, kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(p, maps);
  return last_status();
}

// Maps of panels of `rows` rows of a tensor of queries, or of keys; none for a gradient that is not wanted.
struct MapMaker {
  const AttentionCuda& p;
  CudaStatus failed = nullptr;

  void queries(CUtensorMap& to, const CudaRows& x, int width, int rows) {
    if (!failed) failed = make_tensor_map(&to, x, width, p.heads, p.queries, p.batch, rows);
  }
  void keys(CUtensorMap& to, const CudaRows& x, int width, int rows) {
    if (!failed) failed = make_tensor_map(&to, x, width, p.key_heads, p.keys, p.batch, rows);
  }
  void queries_out(CUtensorMap& to, const AttentionOut& x, int width) {
    if (x.data) queries(to, rows_of(x, p.queries, p.heads, width), width, 64);
  }
  void keys_out(CUtensorMap& to, const AttentionOut& x, int width) {
    if (x.data) keys(to, rows_of(x, p.keys, p.key_heads, width), width, 64);
  }

 private:
  static CudaRows rows_of(const AttentionOut& x, int64_t tokens, int64_t heads, int64_t width) {
    return {x.data, x.type, tokens * heads * width, heads * width, width};
  }
};

// dq, then dk and dv if wanted.
template <class QueryLayout, class KeyLayout>
CudaStatus backward_passes(const AttentionCuda& p, BackwardKernel* queries_kernel,
                           BackwardKernel* keys_kernel, void* stream) {
  constexpr int kRows = QueryLayout::kRows;
  static_assert(kRows == KeyLayout::kRows);
  Maps maps;
  MapMaker make{p};
  make.queries(maps.own_first, p.q, p.key_width, kRows);
  make.queries(maps.own_second, p.dout, p.value_width, kRows);
  make.keys(maps.first, p.k, p.key_width, QueryLayout::kStep);
  make.keys(maps.second, p.v, p.value_width, QueryLayout::kStep);
  make.queries_out(maps.out_first, p.dq, p.key_width);
  const dim3 query_grid(p.heads * p.batch, (p.queries + kRows - 1) / kRows);
  if (!make.failed) make.failed = launch(queries_kernel, p, maps, QueryLayout::kBytes, query_grid, stream);
  if (make.failed || (!p.dk.data && !p.dv.data)) return make.failed;
  make.keys(maps.own_first, p.k, p.key_width, kRows);
  make.keys(maps.own_second, p.v, p.value_width, kRows);
  make.queries(maps.first, p.q, p.key_width, KeyLayout::kStep);
  make.queries(maps.second, p.dout, p.value_width, KeyLayout::kStep);
  make.keys_out(maps.out_first, p.dk, p.key_width);
  make.keys_out(maps.out_second, p.dv, p.value_width);
  if (make.failed) return make.failed;
  const dim3 key_grid(p.key_heads * p.batch, (p.keys + kRows - 1) / kRows);
  return launch(keys_kernel, p, maps, KeyLayout::kBytes, key_grid, stream);
}

// Widths from 129 to 256.
CudaStatus attention_backward_wide(const AttentionCuda& p, void* stream);

}  // namespace weft::kernels
