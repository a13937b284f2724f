// Backward attention on Hopper, scores without cap and bias: one pass for dq, one for dk and dv. A warpgroup whose one
// thread feeds the copy engine, two that multiply and own 64 rows of the sums each. Scores are computed so that those
// rows are theirs, and go from registers into the next product.
#include <algorithm>

#include "ops/attention/kernel_cuda_backward.cuh"

namespace weft::kernels {
namespace {

constexpr int kRows = kMaskTile;

// Whether a step's first product starts before the last of the step before has ended: faster for narrow heads only.
template <int kWidth>
constexpr bool kAhead = kWidth <= 64;

template <int kWidth>
constexpr int kQueryStagesOf = kWidth > 64 ? 2 : 4;  // of keys and values passing queries
template <int kWidth>
using QueryLayout =
    Layout<kRows, kWidth, 128, kQueryStagesOf<kWidth>, 2 * 128 * 4>;  // positions and segments

template <class T, int kWidth, bool kSimple>
__global__ void __launch_bounds__(kThreads, 1)
    queries_kernel(const __grid_constant__ AttentionCuda p, const __grid_constant__ Maps maps) {
  constexpr int kKeys = 128, kQueryStages = kQueryStagesOf<kWidth>;
  extern __shared__ char shared_bytes[];
  __shared__ Barriers<kQueryStages> barriers;
  const QueryLayout<kWidth> shared{aligned_memory(shared_bytes)};
  const int tile = gridDim.y - 1 - blockIdx.y, head = blockIdx.x % p.heads, batch = blockIdx.x / p.heads;
  const int first = tile * kRows, key_head = head / p.group();
  if (threadIdx.x == 0) barriers.init(2);
  __syncthreads();

  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x > 0) return;
    expect(&barriers.own, 2 * shared.own_first().kBytes);
    copy_tile(shared.own_first(), maps.own_first, &barriers.own, head, first, batch);
    copy_tile(shared.own_second(), maps.own_second, &barriers.own, head, first, batch);
    Walk<kMaskTile / kKeys> walk(p.mask, true, batch, tile, head, 1);
    for_each_step(walk, head, [&](int n, const PassingStep& step) {
      const int stage = n % kQueryStages;
      barrier_wait(&barriers.empty[stage], (n / kQueryStages & 1) ^ 1);
      barriers.steps[stage] = step;
      uint64_t* const full = &barriers.full[stage];
      expect(full, shared.kStageBytes - (p.mask.rule ? 8 * kKeys : 0));
      if (!p.mask.rule) {
        const TileSlots slots = tile_slots(key_slots(p.mask, batch), step.first());
        copy_bytes(shared.more(stage), slots.position, 4 * kKeys, full);
        copy_bytes(shared.more(stage) + 4 * kKeys, slots.segment, 4 * kKeys, full);
      }
      copy_tile(shared.first(stage), maps.first, full, key_head, step.first(), batch);
      copy_tile(shared.second(stage), maps.second, full, key_head, step.first(), batch);
    });
    return;
  }

  grow_registers<240>();
  const int group = threadIdx.x / 128 - 1, lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 - 64;
  const QueryLimits limits[2] = {query_limits(p.mask, batch, first + row + lane / 4, head),
                                 query_limits(p.mask, batch, first + row + lane / 4 + 8, head)};
  const KeySlots slots = key_slots(p.mask, batch);
  const int64_t statistics = statistics_at(p, batch, head) + first + row + lane / 4;
  const float lse2[2] = {p.lse2[statistics], p.lse2[statistics + 8]},
              delta[2] = {p.delta[statistics], p.delta[statistics + 8]};
  const float unit = p.scale * kLog2e;
  float dq[kWidth / 8][4] = {}, s[kKeys / 8][4], dp[kKeys / 8][4];
  const auto wait_for = [&](int n) { barrier_wait(&barriers.full[n % kQueryStages], n / kQueryStages & 1); };
  const auto start_s = [&](int n) {
    products_begin();
    start_scores<T, kWidth>(s, shared.own_first(), opaque(64 * group), shared.first(n % kQueryStages));
    products_commit();
  };
  const auto start_dp = [&](int n) {
    products_begin();
    start_scores<T, kWidth>(dp, shared.own_second(), opaque(64 * group), shared.second(n % kQueryStages));
    products_commit();
  };
  barrier_wait(&barriers.own, 0);
  pin(dq);
  wait_for(0);
  start_s(0), start_dp(0);
  for (int n = 0;; ++n) {
    const int stage = n % kQueryStages;
    products_wait<1>();
    pin(s);
    const PassingStep step = barriers.steps[stage];
    if (!step.full()) {
      const auto* here = reinterpret_cast<const int32_t*>(shared.more(stage));
      hide<kSimple>(p.mask, batch, limits, slots, step.first(), {here, here + kKeys}, s);
    }
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] = fast_exp2(fmaf(s[j][i], unit, -lse2[i / 2]));
    pin(s);
    // A branch between exponentials and the wait for products: else the assembler lets the former wait too.
    if (!step.last()) wait_for(n + 1);
    products_wait<0>();
    pin(dp);
    uint32_t ds[kKeys / 16][4];
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] *= dp[j][i] - delta[i / 2];
    as_operands<T>(ds, s);
    products_begin();
    start_sums<T, kWidth, kKeys>(dq, ds, shared.first(stage));
    products_commit();
    if (step.last()) break;
    if constexpr (kAhead<kWidth>) start_s(n + 1);
    products_wait<kAhead<kWidth> ? 1 : 0>();
    pin(dq);
    if (threadIdx.x % 128 == 0) barrier_arrive(&barriers.empty[stage]);
    if constexpr (!kAhead<kWidth>) start_s(n + 1);
    start_dp(n + 1);
  }
  products_wait<0>();
  pin(dq);
  store_tile<T>(shared.own_first(), 64 * group, dq, p.scale, maps.out_first, head, first, batch, p.key_width);
  store_wait_read();
}

template <int kWidth>
constexpr int kKeyStagesOf = kWidth > 64 ? 4 : 6;  // of queries passing keys
template <int kWidth>
using KeyLayout = Layout<kRows, kWidth, 64, kKeyStagesOf<kWidth>, 64 * 24>;  // limits, lse2 and delta

template <class T, int kWidth, bool kSimple>
__global__ void __launch_bounds__(kThreads, 1)
    keys_kernel(const __grid_constant__ AttentionCuda p, const __grid_constant__ Maps maps) {
  constexpr int kQueries = 64, kKeyStages = kKeyStagesOf<kWidth>;
  extern __shared__ char shared_bytes[];
  __shared__ Barriers<kKeyStages> barriers;
  const KeyLayout<kWidth> shared{aligned_memory(shared_bytes)};
  const int tile = blockIdx.y, key_head = blockIdx.x % p.key_heads, batch = blockIdx.x / p.key_heads;
  const int first = tile * kRows;
  if (threadIdx.x == 0) barriers.init(2);
  __syncthreads();

  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x > 0) return;
    expect(&barriers.own, 2 * shared.own_first().kBytes);
    copy_tile(shared.own_first(), maps.own_first, &barriers.own, key_head, first, batch);
    copy_tile(shared.own_second(), maps.own_second, &barriers.own, key_head, first, batch);
    Walk<kMaskTile / kQueries> walk(p.mask, false, batch, tile, key_head * p.group(), p.group());
    for_each_step(walk, key_head * p.group(), [&](int n, const PassingStep& step) {
      const int stage = n % kKeyStages;
      barrier_wait(&barriers.empty[stage], (n / kKeyStages & 1) ^ 1);
      barriers.steps[stage] = step;
      uint64_t* const full = &barriers.full[stage];
      expect(full, shared.kStageBytes - (p.mask.rule ? 16 * kQueries : 0));
      const int64_t statistics = statistics_at(p, batch, step.head) + step.first();
      copy_tile(shared.first(stage), maps.first, full, step.head, step.first(), batch);
      if (!p.mask.rule)
        copy_bytes(shared.more(stage), limits_at(p.mask, batch, step.first()), 16 * kQueries, full);
      copy_bytes(shared.more(stage) + 16 * kQueries, p.lse2 + statistics, 4 * kQueries, full);
      copy_tile(shared.second(stage), maps.second, full, step.head, step.first(), batch);
      copy_bytes(shared.more(stage) + 20 * kQueries, p.delta + statistics, 4 * kQueries, full);
    });
    return;
  }

  grow_registers<240>();
  const int group = threadIdx.x / 128 - 1, lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 - 64;
  const bool leader = threadIdx.x % 128 == 0;
  const KeySlots slots = key_slots(p.mask, batch);
  const float unit = p.scale * kLog2e;
  const LaneSlots rows(slots, first + row + lane / 4);
  float dk[kWidth / 8][4] = {}, dv[kWidth / 8][4] = {}, s[kQueries / 8][4], dp[kQueries / 8][4];
  const auto start_s = [&](int n) {
    barrier_wait(&barriers.full[n % kKeyStages], n / kKeyStages & 1);
    products_begin();
    start_scores<T, kWidth>(s, shared.own_first(), opaque(64 * group), shared.first(n % kKeyStages));
    products_commit();
  };
  const auto start_dp = [&](int n) {
    products_begin();
    start_scores<T, kWidth>(dp, shared.own_second(), opaque(64 * group), shared.second(n % kKeyStages));
    products_commit();
  };
  barrier_wait(&barriers.own, 0);
  pin(dk);
  pin(dv);
  start_s(0), start_dp(0);
  for (int n = 0;; ++n) {
    const int stage = n % kKeyStages;
    products_wait<1>();
    pin(s);
    const PassingStep step = barriers.steps[stage];
    const auto* const limits = reinterpret_cast<const int4*>(shared.more(stage));
    const float* const lse2 = reinterpret_cast<const float*>(limits + kQueries) + lane % 4 * 2;
    if (!step.full())
      hide_transposed<kSimple>(p.mask, batch, step.head, step.first(), limits, slots, rows, s);
#pragma unroll
    for (int j = 0; j < kQueries / 8; ++j) {
      const float2 base = *reinterpret_cast<const float2*>(lse2 + 8 * j);
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] = fast_exp2(fmaf(s[j][i], unit, -(i % 2 ? base.y : base.x)));
    }
    uint32_t weights[kQueries / 16][4], ds[kQueries / 16][4];
    as_operands<T>(weights, s);
    products_begin();
    start_sums<T, kWidth, kQueries>(dv, weights, shared.second(stage));
    products_commit();
    products_wait<1>();
    pin(dp);
    const float* const delta = lse2 + kQueries;
#pragma unroll
    for (int j = 0; j < kQueries / 8; ++j) {
      const float2 less = *reinterpret_cast<const float2*>(delta + 8 * j);
#pragma unroll
      for (int i = 0; i < 4; ++i) dp[j][i] = s[j][i] * (dp[j][i] - (i % 2 ? less.y : less.x));
    }
    as_operands<T>(ds, dp);
    products_begin();
    start_sums<T, kWidth, kQueries>(dk, ds, shared.first(stage));
    products_commit();
    if (step.last()) break;
    if constexpr (kAhead<kWidth>) start_s(n + 1);
    products_wait<kAhead<kWidth> ? 1 : 0>();
    pin(dk);
    pin(dv);
    if (leader) barrier_arrive(&barriers.empty[stage]);
    if constexpr (!kAhead<kWidth>) start_s(n + 1);
    start_dp(n + 1);
  }
  products_wait<0>();
  pin(dk);
  pin(dv);
  if (p.dk.data)
    store_tile<T>(shared.own_first(), 64 * group, dk, p.scale, maps.out_first, key_head, first, batch,
                  p.key_width);
  if (p.dv.data)
    store_tile<T>(shared.own_second(), 64 * group, dv, 1, maps.out_second, key_head, first, batch,
                  p.value_width);
  store_wait_read();
}

template <class T, int kWidth>
CudaStatus backward(const AttentionCuda& p, void* stream) {
  const bool simple = !p.mask.q_tree && p.mask.stripe_stride == 0;
  Maps maps;
  CudaStatus failed = backward_map(maps.own_first, p, p.q, true, p.key_width, kRows);
  if (!failed) failed = backward_map(maps.own_second, p, p.dout, true, p.value_width, kRows);
  if (!failed) failed = backward_map(maps.first, p, p.k, false, p.key_width, 128);
  if (!failed) failed = backward_map(maps.second, p, p.v, false, p.value_width, 128);
  if (!failed)
    failed = backward_map(maps.out_first, p, rows_of(p.dq, p.queries, p.heads, p.key_width), true,
                          p.key_width, 64);
  if (!failed) {
    const dim3 grid(p.heads * p.batch, p.mask.query_tiles);
    failed = launch(simple ? queries_kernel<T, kWidth, true> : queries_kernel<T, kWidth, false>, p, maps,
                    QueryLayout<kWidth>::kBytes, grid, stream);
  }
  if (failed || (!p.dk.data && !p.dv.data)) return failed;
  failed = backward_map(maps.own_first, p, p.k, false, p.key_width, kRows);
  if (!failed) failed = backward_map(maps.own_second, p, p.v, false, p.value_width, kRows);
  if (!failed) failed = backward_map(maps.first, p, p.q, true, p.key_width, 64);
  if (!failed) failed = backward_map(maps.second, p, p.dout, true, p.value_width, 64);
  if (!failed && p.dk.data)
    failed = backward_map(maps.out_first, p, rows_of(p.dk, p.keys, p.key_heads, p.key_width), false,
                          p.key_width, 64);
  if (!failed && p.dv.data)
    failed = backward_map(maps.out_second, p, rows_of(p.dv, p.keys, p.key_heads, p.value_width), false,
                          p.value_width, 64);
  if (failed) return failed;
  const dim3 grid(p.key_heads * p.batch, p.mask.key_tiles);
  return launch(simple ? keys_kernel<T, kWidth, true> : keys_kernel<T, kWidth, false>, p, maps,
                KeyLayout<kWidth>::kBytes, grid, stream);
}

}  // namespace

CudaStatus attention_backward_sm90(const AttentionCuda& p, const AttentionDevice& device) {
  void* const stream = device.stream;
  const auto by_width = [&]<class T>(T type) {
    const int width = std::max(p.key_width, p.value_width);
    return width <= 64    ? backward<T, 64>(p, stream)
           : width <= 128 ? backward<T, 128>(p, stream)
                          : attention_backward_wide(p, stream);
  };
  return p.q.type == CudaType::bf16 ? by_width(bf16{}) : by_width(fp16{});
}

}  // namespace weft::kernels
