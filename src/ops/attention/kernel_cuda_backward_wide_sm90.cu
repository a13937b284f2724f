// Backward attention on Hopper for heads of up to 256: as kernel_cuda_backward_sm90.cu with tiles of 64 rows, because
// the sums for 64 rows of 256 fill the registers of a warpgroup. For dq two warpgroups take every other tile of keys; for
// dk and dv one has dk and the other dv.
#include <utility>

#include "ops/attention/kernel_cuda_backward.cuh"

namespace weft::kernels {
namespace {

constexpr int kWidth = 256, kRows = 64, kStep = 64, kStages = 2;
using QueryLayout = Layout<kRows, kWidth, kStep, kStages, 2 * 4 * kStep>;  // positions and segments
using KeyLayout = Layout<kRows, kWidth, kStep, kStages, 24 * kStep>;       // limits, lse2 and delta

template <class T, bool kSimple>
__global__ void __launch_bounds__(kThreads, 1)
    queries_kernel(const __grid_constant__ AttentionCuda p, const __grid_constant__ Maps maps) {
  extern __shared__ char shared_bytes[];
  __shared__ Barriers<kStages> barriers;
  const QueryLayout shared{aligned_memory(shared_bytes)};
  const int tile = gridDim.y - 1 - blockIdx.y, head = blockIdx.x % p.heads, batch = blockIdx.x / p.heads;
  const int first = tile * kRows, key_head = head / p.group();
  if (threadIdx.x == 0) barriers.init(1);
  __syncthreads();
  Walk<kMaskTile / kStep> walk(p.mask, true, batch, first / kMaskTile, head, 1);

  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x > 0) return;
    expect(&barriers.own, 2 * shared.own_first().kBytes);
    copy_tile(shared.own_first(), maps.own_first, &barriers.own, head, first, batch);
    copy_tile(shared.own_second(), maps.own_second, &barriers.own, head, first, batch);
    for (int n = 0; !walk.done(); walk.next(), ++n) {
      const int stage = n % kStages;
      barrier_wait(&barriers.empty[stage], (n / kStages & 1) ^ 1);
      uint64_t* const full = &barriers.full[stage];
      expect(full, shared.kStageBytes - (p.mask.rule ? 8 * kStep : 0));
      if (!p.mask.rule) {
        const TileSlots slots = tile_slots(key_slots(p.mask, batch), walk.first());
        copy_bytes(shared.more(stage), slots.position, 4 * kStep, full);
        copy_bytes(shared.more(stage) + 4 * kStep, slots.segment, 4 * kStep, full);
      }
      copy_tile(shared.first(stage), maps.first, full, key_head, walk.first(), batch);
      copy_tile(shared.second(stage), maps.second, full, key_head, walk.first(), batch);
    }
    return;
  }

  grow_registers<240>();
  const int group = threadIdx.x / 128 - 1, lane = threadIdx.x % 32,
            row = threadIdx.x % 128 / 32 * 16 + lane / 4;
  const QueryLimits limits[2] = {query_limits(p.mask, batch, first + row, head),
                                 query_limits(p.mask, batch, first + row + 8, head)};
  const KeySlots slots = key_slots(p.mask, batch);
  const int64_t statistics = statistics_at(p, batch, head) + first + row;
  const float lse2[2] = {p.lse2[statistics], p.lse2[statistics + 8]},
              delta[2] = {p.delta[statistics], p.delta[statistics + 8]};
  const float unit = p.scale * kLog2e;
  float dq[kWidth / 8][4] = {}, s[kStep / 8][4], dp[kStep / 8][4];
  barrier_wait(&barriers.own, 0);
  for (int n = 0; !walk.done(); walk.next(), ++n) {
    if (n % kStages != group) continue;
    barrier_wait(&barriers.full[group], n / kStages & 1);
    products_begin();
    start_scores<T, kWidth>(s, shared.own_first(), 0, shared.first(group));
    products_commit();
    start_scores<T, kWidth>(dp, shared.own_second(), 0, shared.second(group));
    products_commit();
    products_wait<1>();
    pin(s);
    if (!walk.full()) {
      const auto* here = reinterpret_cast<const int32_t*>(shared.more(group));
      hide<kSimple>(p.mask, batch, limits, slots, walk.first(), {here, here + kStep}, s);
    }
#pragma unroll
    for (int j = 0; j < kStep / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] = fast_exp2(fmaf(s[j][i], unit, -lse2[i / 2]));
    products_wait<0>();
    pin(dp);
#pragma unroll
    for (int j = 0; j < kStep / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] *= dp[j][i] - delta[i / 2];
    uint32_t ds[kStep / 16][4];
    as_operands<T>(ds, s);
    products_begin();
    start_sums<T, kWidth, kStep>(dq, ds, shared.first(group));
    products_commit();
    products_wait<0>();
    pin(dq);
    if (threadIdx.x % 128 == 0) barrier_arrive(&barriers.empty[group]);
  }
  // The second warpgroup's sums reach the first where the stages were.
  constexpr int kBoth = 3;  // number of a barrier of both
  float* const others = reinterpret_cast<float*>(shared.first(0).data) + threadIdx.x % 128;
  named_barrier(kBoth, 256);
  if (group == 1)
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) others[(4 * j + i) * 128] = dq[j][i];
  named_barrier(kBoth, 256);
  if (group == 1) return;
#pragma unroll
  for (int j = 0; j < kWidth / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) dq[j][i] += others[(4 * j + i) * 128];
  store_tile<T>(shared.own_first(), 0, dq, p.scale, maps.out_first, head, first, batch, p.key_width);
  store_wait_read();
}

// One warpgroup's part of a pass over the queries of a tile of keys: dk, or dv.
template <class T, bool kSimple, bool kHasDk>
__device__ __forceinline__ void consume_queries(const AttentionCuda& p, const Maps& maps,
                                                const KeyLayout& shared, Barriers<kStages>& barriers,
                                                Walk<kMaskTile / kStep>& walk, int key_head, int first) {
  const int batch = walk.batch, lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane / 4;
  const KeySlots slots = key_slots(p.mask, batch);
  const LaneSlots rows(slots, first + row);
  const float unit = p.scale * kLog2e;
  float sums[kWidth / 8][4] = {}, s[kStep / 8][4], dp[kStep / 8][4];
  barrier_wait(&barriers.own, 0);
  for (int n = 0; !walk.done(); walk.next(), ++n) {
    const int stage = n % kStages;
    barrier_wait(&barriers.full[stage], n / kStages & 1);
    products_begin();
    start_scores<T, kWidth>(s, shared.own_first(), 0, shared.first(stage));
    if constexpr (kHasDk) start_scores<T, kWidth>(dp, shared.own_second(), 0, shared.second(stage));
    products_commit();
    products_wait<0>();
    pin(s);
    if constexpr (kHasDk) pin(dp);
    const auto* const limits = reinterpret_cast<const int4*>(shared.more(stage));
    const float* const lse2 = reinterpret_cast<const float*>(limits + kStep) + lane % 4 * 2;
    const float* const delta = lse2 + kStep;
    if (!walk.full())
      hide_transposed<kSimple>(p.mask, batch, walk.head, walk.first(), limits, slots, rows, s);
#pragma unroll
    for (int j = 0; j < kStep / 8; ++j) {
      const float2 base = *reinterpret_cast<const float2*>(lse2 + 8 * j),
                   less = *reinterpret_cast<const float2*>(delta + 8 * j);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        s[j][i] = fast_exp2(fmaf(s[j][i], unit, -(i % 2 ? base.y : base.x)));
        if constexpr (kHasDk) s[j][i] *= dp[j][i] - (i % 2 ? less.y : less.x);
      }
    }
    uint32_t weights[kStep / 16][4];
    as_operands<T>(weights, s);
    products_begin();
    start_sums<T, kWidth, kStep>(sums, weights, kHasDk ? shared.first(stage) : shared.second(stage));
    products_commit();
    products_wait<0>();
    pin(sums);
    if (threadIdx.x % 128 == 0) barrier_arrive(&barriers.empty[stage]);
  }
  named_barrier(3, 256);  // the tiles that stayed are free
  if (kHasDk && p.dk.data)
    store_tile<T>(shared.own_first(), 0, sums, p.scale, maps.out_first, key_head, first, batch, p.key_width);
  if (!kHasDk && p.dv.data)
    store_tile<T>(shared.own_second(), 0, sums, 1, maps.out_second, key_head, first, batch, p.value_width);
  store_wait_read();
}

template <class T, bool kSimple>
__global__ void __launch_bounds__(kThreads, 1)
    keys_kernel(const __grid_constant__ AttentionCuda p, const __grid_constant__ Maps maps) {
  extern __shared__ char shared_bytes[];
  __shared__ Barriers<kStages> barriers;
  const KeyLayout shared{aligned_memory(shared_bytes)};
  const int tile = blockIdx.y, key_head = blockIdx.x % p.key_heads, batch = blockIdx.x / p.key_heads;
  const int first = tile * kRows;
  if (threadIdx.x == 0) barriers.init(2);
  __syncthreads();
  Walk<kMaskTile / kStep> walk(p.mask, false, batch, first / kMaskTile, key_head * p.group(), p.group());

  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x > 0) return;
    expect(&barriers.own, 2 * shared.own_first().kBytes);
    copy_tile(shared.own_first(), maps.own_first, &barriers.own, key_head, first, batch);
    copy_tile(shared.own_second(), maps.own_second, &barriers.own, key_head, first, batch);
    for (int n = 0; !walk.done(); walk.next(), ++n) {
      const int stage = n % kStages;
      barrier_wait(&barriers.empty[stage], (n / kStages & 1) ^ 1);
      uint64_t* const full = &barriers.full[stage];
      expect(full, shared.kStageBytes - (p.mask.rule ? 16 * kStep : 0));
      const int64_t statistics = statistics_at(p, batch, walk.head) + walk.first();
      copy_tile(shared.first(stage), maps.first, full, walk.head, walk.first(), batch);
      if (!p.mask.rule)
        copy_bytes(shared.more(stage), limits_at(p.mask, batch, walk.first()), 16 * kStep, full);
      copy_bytes(shared.more(stage) + 16 * kStep, p.lse2 + statistics, 4 * kStep, full);
      copy_tile(shared.second(stage), maps.second, full, walk.head, walk.first(), batch);
      copy_bytes(shared.more(stage) + 20 * kStep, p.delta + statistics, 4 * kStep, full);
    }
    return;
  }

  grow_registers<240>();
  if (threadIdx.x < 256)
    consume_queries<T, kSimple, false>(p, maps, shared, barriers, walk, key_head, first);
  else
    consume_queries<T, kSimple, true>(p, maps, shared, barriers, walk, key_head, first);
}

template <class T>
CudaStatus backward(const AttentionCuda& p, void* stream) {
  const bool simple = !p.mask.q_tree && p.mask.stripe_stride == 0;
  Maps maps;
  const auto make = [&](CUtensorMap& to, const CudaRows& x, bool of_queries, int width) {
    return backward_map(to, p, x, of_queries, width, kRows);
  };
  CudaStatus failed = make(maps.own_first, p.q, true, p.key_width);
  if (!failed) failed = make(maps.own_second, p.dout, true, p.value_width);
  if (!failed) failed = make(maps.first, p.k, false, p.key_width);
  if (!failed) failed = make(maps.second, p.v, false, p.value_width);
  if (!failed)
    failed = make(maps.out_first, rows_of(p.dq, p.queries, p.heads, p.key_width), true, p.key_width);
  if (!failed) {
    const dim3 grid(p.heads * p.batch, (p.queries + kRows - 1) / kRows);
    failed = launch(simple ? queries_kernel<T, true> : queries_kernel<T, false>, p, maps, QueryLayout::kBytes,
                    grid, stream);
  }
  if (failed || (!p.dk.data && !p.dv.data)) return failed;
  std::swap(maps.own_first, maps.first);
  std::swap(maps.own_second, maps.second);
  if (p.dk.data)
    failed = make(maps.out_first, rows_of(p.dk, p.keys, p.key_heads, p.key_width), false, p.key_width);
  if (!failed && p.dv.data)
    failed = make(maps.out_second, rows_of(p.dv, p.keys, p.key_heads, p.value_width), false, p.value_width);
  if (failed) return failed;
  const dim3 grid(p.key_heads * p.batch, (p.keys + kRows - 1) / kRows);
  return launch(simple ? keys_kernel<T, true> : keys_kernel<T, false>, p, maps, KeyLayout::kBytes, grid,
                stream);
}

}  // namespace

CudaStatus attention_backward_wide(const AttentionCuda& p, void* stream) {
  return p.q.type == CudaType::bf16 ? backward<bf16>(p, stream) : backward<fp16>(p, stream);
}

}  // namespace weft::kernels
