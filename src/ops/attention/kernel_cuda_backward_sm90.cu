// Backward attention on Hopper, scores without cap and bias: one pass for dq, one for dk and dv. A warpgroup whose one
// thread feeds the copy engine, two that multiply and own 64 rows of the sums each. Scores are computed so that those
// rows are theirs, and go from registers into the next product.
#include <algorithm>

#include "ops/attention/kernel_cuda_backward.cuh"

namespace weft::kernels {
namespace {

// Whether a step's first product starts before the last of the step before has ended: faster for narrow heads only.
template <int kWidth>
constexpr bool kAhead = kWidth <= 64;

constexpr int kKeys = 128, kQueries = 64;  // of a step
template <int kWidth>
using QueryLayout = LayoutOfQueries<kMaskTile, kWidth, kKeys, (kWidth > 64 ? 2 : 4)>;
template <int kWidth>
using KeyLayout = LayoutOfKeys<kMaskTile, kWidth, kQueries, (kWidth > 64 ? 4 : 6)>;

template <class T, int kWidth, bool kSimple>
__global__ void __launch_bounds__(kThreads, 1)
    queries_kernel(const __grid_constant__ AttentionCuda p, const __grid_constant__ Maps maps) {
  extern __shared__ char shared_bytes[];
  __shared__ Barriers<QueryLayout<kWidth>::kStages> barriers;
  const QueryLayout<kWidth> shared{aligned_memory(shared_bytes)};
  const int tile = gridDim.y - 1 - blockIdx.y, head = blockIdx.x % p.heads, batch = blockIdx.x / p.heads;
  const int first = tile * kMaskTile;
  if (threadIdx.x == 0) barriers.init(2);
  __syncthreads();

  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x == 0) feed_queries<1>(p, maps, shared, barriers, head, first, batch);
    return;
  }

  grow_registers<240>();
  const int group = threadIdx.x / 128 - 1, row = threadIdx.x / 32 * 16 - 64 + threadIdx.x % 32 / 4;
  const LaneQueries queries(p, batch, head, first + row);
  const KeySlots slots = key_slots(p.mask, batch);
  const float unit = p.scale * kLog2e;
  float dq[kWidth / 8][4] = {}, s[kKeys / 8][4], dp[kKeys / 8][4];
  const auto start_s = [&](int n) {
    products_begin();
    start_scores<T, kWidth>(s, shared.own_first(), opaque(64 * group), shared.first(n));
    products_commit();
  };
  const auto start_dp = [&](int n) {
    products_begin();
    start_scores<T, kWidth>(dp, shared.own_second(), opaque(64 * group), shared.second(n));
    products_commit();
  };
  barrier_wait(&barriers.own, 0);
  pin(dq);
  barriers.wait_full(0);
  start_s(0), start_dp(0);
  for (int n = 0;; ++n) {
    products_wait<1>();
    pin(s);
    const PassingStep step = barriers.steps[n % shared.kStages];
    if (!step.full()) {
      const auto* here = reinterpret_cast<const int32_t*>(shared.more(n));
      hide<kSimple>(p.mask, batch, queries.limits, slots, step.first(), {here, here + kKeys}, s);
    }
    queries.exponentials(unit, s);
    pin(s);
    // A branch between exponentials and the wait for products: else the assembler lets the former wait too.
    if (!step.last()) barriers.wait_full(n + 1);
    products_wait<0>();
    pin(dp);
    uint32_t ds[kKeys / 16][4];
    queries.gradients<T>(ds, s, dp);
    products_begin();
    start_sums<T, kWidth, kKeys>(dq, ds, shared.first(n));
    products_commit();
    if (step.last()) break;
    if constexpr (kAhead<kWidth>) start_s(n + 1);
    products_wait<kAhead<kWidth> ? 1 : 0>();
    pin(dq);
    barriers.hand_back(n);
    if constexpr (!kAhead<kWidth>) start_s(n + 1);
    start_dp(n + 1);
  }
  products_wait<0>();
  pin(dq);
  store_tile<T>(shared.own_first(), 64 * group, dq, p.scale, maps.out_first, head, first, batch, p.key_width);
  store_wait_read();
}

template <class T, int kWidth, bool kSimple>
__global__ void __launch_bounds__(kThreads, 1)
    keys_kernel(const __grid_constant__ AttentionCuda p, const __grid_constant__ Maps maps) {
  extern __shared__ char shared_bytes[];
  __shared__ Barriers<KeyLayout<kWidth>::kStages> barriers;
  const KeyLayout<kWidth> shared{aligned_memory(shared_bytes)};
  const int key_head = blockIdx.x % p.key_heads, batch = blockIdx.x / p.key_heads;
  const int first = blockIdx.y * kMaskTile;
  if (threadIdx.x == 0) barriers.init(2);
  __syncthreads();

  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x == 0) feed_keys(p, maps, shared, barriers, key_head, first, batch);
    return;
  }

  grow_registers<240>();
  const int group = threadIdx.x / 128 - 1, row = threadIdx.x / 32 * 16 - 64 + threadIdx.x % 32 / 4;
  const KeySlots slots = key_slots(p.mask, batch);
  const float unit = p.scale * kLog2e;
  const LaneSlots rows(slots, first + row);
  float dk[kWidth / 8][4] = {}, dv[kWidth / 8][4] = {}, s[kQueries / 8][4], dp[kQueries / 8][4];
  const auto start_s = [&](int n) {
    barriers.wait_full(n);
    products_begin();
    start_scores<T, kWidth>(s, shared.own_first(), opaque(64 * group), shared.first(n));
    products_commit();
  };
  const auto start_dp = [&](int n) {
    products_begin();
    start_scores<T, kWidth>(dp, shared.own_second(), opaque(64 * group), shared.second(n));
    products_commit();
  };
  barrier_wait(&barriers.own, 0);
  pin(dk);
  pin(dv);
  start_s(0), start_dp(0);
  for (int n = 0;; ++n) {
    products_wait<1>();
    pin(s);
    const PassingStep step = barriers.steps[n % shared.kStages];
    const PassingQueries<kQueries> queries(shared.more(n));
    if (!step.full())
      hide_transposed<kSimple>(p.mask, batch, step.head, step.first(), queries.limits, slots, rows, s);
    queries.exponentials(unit, s);
    uint32_t weights[kQueries / 16][4], ds[kQueries / 16][4];
    as_operands<T>(weights, s);
    products_begin();
    start_sums<T, kWidth, kQueries>(dv, weights, shared.second(n));
    products_commit();
    products_wait<1>();
    pin(dp);
    queries.gradients(s, dp);
    as_operands<T>(ds, dp);
    products_begin();
    start_sums<T, kWidth, kQueries>(dk, ds, shared.first(n));
    products_commit();
    if (step.last()) break;
    if constexpr (kAhead<kWidth>) start_s(n + 1);
    products_wait<kAhead<kWidth> ? 1 : 0>();
    pin(dk);
    pin(dv);
    barriers.hand_back(n);
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
  return backward_passes<QueryLayout<kWidth>, KeyLayout<kWidth>>(
      p, simple ? queries_kernel<T, kWidth, true> : queries_kernel<T, kWidth, false>,
      simple ? keys_kernel<T, kWidth, true> : keys_kernel<T, kWidth, false>, stream);
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
