// Backward attention on Hopper for heads of up to 256: as kernel_cuda_backward_sm90.cu with tiles of 64 rows, because
// the sums for 64 rows of 256 fill the registers of a warpgroup. For dq two warpgroups take every other tile of keys; for
// dk and dv one has dk and the other dv.
#include "ops/attention/kernel_cuda_backward.cuh"

namespace weft::kernels {
namespace {

constexpr int kWidth = 256, kRows = 64, kStep = 64, kStages = 2;
using QueryLayout = LayoutOfQueries<kRows, kWidth, kStep, kStages>;
using KeyLayout = LayoutOfKeys<kRows, kWidth, kStep, kStages>;
constexpr int kBoth = 3;  // number of a barrier of both warpgroups

template <class T, bool kSimple>
__global__ void __launch_bounds__(kThreads, 1)
    queries_kernel(const __grid_constant__ AttentionCuda p, const __grid_constant__ Maps maps) {
  extern __shared__ char shared_bytes[];
  __shared__ Barriers<kStages> barriers;
  const QueryLayout shared{aligned_memory(shared_bytes)};
  const int tile = gridDim.y - 1 - blockIdx.y, head = blockIdx.x % p.heads, batch = blockIdx.x / p.heads;
  const int first = tile * kRows;
  if (threadIdx.x == 0) barriers.init(1);
  __syncthreads();

  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x == 0) feed_queries<2>(p, maps, shared, barriers, head, first, batch);
    return;
  }

  grow_registers<240>();
  const int group = threadIdx.x / 128 - 1, row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  const LaneQueries queries(p, batch, head, first + row);
  const KeySlots slots = key_slots(p.mask, batch);
  const float unit = p.scale * kLog2e;
  float dq[kWidth / 8][4] = {}, s[kStep / 8][4], dp[kStep / 8][4];
  barrier_wait(&barriers.own, 0);
  for (int n = group;; n += 2) {
    barriers.wait_full(n);
    products_begin();
    start_scores<T, kWidth>(s, shared.own_first(), 0, shared.first(group));
    products_commit();
    start_scores<T, kWidth>(dp, shared.own_second(), 0, shared.second(group));
    products_commit();
    products_wait<1>();
    pin(s);
    const PassingStep step = barriers.steps[group];
    if (!step.full()) {
      const auto* here = reinterpret_cast<const int32_t*>(shared.more(group));
      hide<kSimple>(p.mask, batch, queries.limits, slots, step.first(), {here, here + kStep}, s);
    }
    queries.exponentials(unit, s);
    products_wait<0>();
    pin(dp);
    uint32_t ds[kStep / 16][4];
    queries.gradients<T>(ds, s, dp);
    products_begin();
    start_sums<T, kWidth, kStep>(dq, ds, shared.first(group));
    products_commit();
    products_wait<0>();
    pin(dq);
    if (step.last()) break;
    barriers.hand_back(n);
  }
  // The second warpgroup's sums reach the first where the stages were.
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
                                                int key_head, int first, int batch) {
  const int row = threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
  const KeySlots slots = key_slots(p.mask, batch);
  const LaneSlots rows(slots, first + row);
  const float unit = p.scale * kLog2e;
  float sums[kWidth / 8][4] = {}, s[kStep / 8][4], dp[kStep / 8][4];
  barrier_wait(&barriers.own, 0);
  for (int n = 0;; ++n) {
    barriers.wait_full(n);
    products_begin();
    start_scores<T, kWidth>(s, shared.own_first(), 0, shared.first(n));
    if constexpr (kHasDk) start_scores<T, kWidth>(dp, shared.own_second(), 0, shared.second(n));
    products_commit();
    products_wait<0>();
    pin(s);
    if constexpr (kHasDk) pin(dp);
    const PassingStep step = barriers.steps[n % kStages];
    const PassingQueries<kStep> queries(shared.more(n));
    if (!step.full())
      hide_transposed<kSimple>(p.mask, batch, step.head, step.first(), queries.limits, slots, rows, s);
    queries.exponentials(unit, s);
    if constexpr (kHasDk) queries.gradients(s, dp);
    uint32_t weights[kStep / 16][4];
    if constexpr (kHasDk)
      as_operands<T>(weights, dp);
    else
      as_operands<T>(weights, s);
    products_begin();
    start_sums<T, kWidth, kStep>(sums, weights, kHasDk ? shared.first(n) : shared.second(n));
    products_commit();
    products_wait<0>();
    pin(sums);
    if (step.last()) break;
    barriers.hand_back(n);
  }
  named_barrier(kBoth, 256);  // the tiles that stayed are free
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
  const int key_head = blockIdx.x % p.key_heads, batch = blockIdx.x / p.key_heads;
  const int first = blockIdx.y * kRows;
  if (threadIdx.x == 0) barriers.init(2);
  __syncthreads();

  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x == 0) feed_keys(p, maps, shared, barriers, key_head, first, batch);
    return;
  }

  grow_registers<240>();
  if (threadIdx.x < 256)
    consume_queries<T, kSimple, false>(p, maps, shared, barriers, key_head, first, batch);
  else
    consume_queries<T, kSimple, true>(p, maps, shared, barriers, key_head, first, batch);
}

template <class T>
CudaStatus backward(const AttentionCuda& p, void* stream) {
  const bool simple = !p.mask.q_tree && p.mask.stripe_stride == 0;
  return backward_passes<QueryLayout, KeyLayout>(
      p, simple ? queries_kernel<T, true> : queries_kernel<T, false>,
      simple ? keys_kernel<T, true> : keys_kernel<T, false>, stream);
}

}  // namespace

CudaStatus attention_backward_wide(const AttentionCuda& p, void* stream) {
  return p.q.type == CudaType::bf16 ? backward<bf16>(p, stream) : backward<fp16>(p, stream);
}

}  // namespace weft::kernels
