// Backward attention on Hopper, scores without cap and bias: one pass for dq, one for dk and dv. A warpgroup whose one
// thread feeds the copy engine, two that multiply and own 64 rows of the sums each. Scores are computed so that those
// rows are theirs, and go from registers into the next product.
#include <algorithm>

#include "ops/attention/kernel_cuda_hopper.cuh"

namespace weft::kernels {
namespace {

constexpr int kRows = kMaskTile, kThreads = 384;

template <int kStages>
struct Barriers {
  uint64_t own, full[kStages], empty[kStages];

  __device__ __forceinline__ void init() {
    barrier_init(&own, 1);
    for (int i = 0; i < kStages; ++i) barrier_init(&full[i], 1), barrier_init(&empty[i], 2);
    barrier_init_fence();
  }
};

__device__ __forceinline__ void expect(uint64_t* barrier, int bytes) {
  barrier_expect(barrier, bytes);
  barrier_arrive(barrier);
}

struct Maps {
  CUtensorMap own_first, own_second, first, second, out_first, out_second;
};

// Two tiles that stay, and stages of two tiles that pass by, each with kMore bytes of what is known of its rows.
template <int kWidth, int kStep, int kStages, int kMore>
struct Layout {
  using Own = Tile<kRows, kWidth>;
  using Passing = Tile<kStep, kWidth>;
  static constexpr int kStageBytes = 2 * Passing::kBytes + kMore;
  static constexpr int kBytes = 2 * Own::kBytes + kStages * kStageBytes + 1024;  // and alignment
  char* memory;

  __device__ Own own_first() const { return {memory}; }
  __device__ Own own_second() const { return {memory + Own::kBytes}; }
  __device__ Passing first(int stage) const {
    return {memory + 2 * Own::kBytes + 2 * stage * Passing::kBytes};
  }
  __device__ Passing second(int stage) const { return {first(stage).data + Passing::kBytes}; }
  __device__ char* more(int stage) const {
    return memory + 2 * Own::kBytes + 2 * kStages * Passing::kBytes + stage * kMore;
  }
};

// c, times factor, to device memory by way of the 64 rows of a tile that this warpgroup alone still uses.
template <class T, int kWidth>
__device__ __forceinline__ void store_tile(const Tile<kRows, kWidth>& by, const float (&c)[kWidth / 8][4],
                                           float factor, const CUtensorMap& map, int head, int first,
                                           int batch, int width) {
  const int group = threadIdx.x / 128 - 1;
  const float factors[2] = {factor, factor};
  write_rows<T>(by, threadIdx.x / 32 * 16 - 64, c, factors);
  async_fence();
  named_barrier(1 + group, 128);
  if (threadIdx.x % 128 != 0) return;
#pragma unroll
  for (int column = 0; column < kWidth; column += 64)
    if (column < width)
      store_panel(&map, by.data + column / 64 * by.kPanelBytes + 64 * group * 128, column, head,
                  first + 64 * group, batch);
  store_commit();
}

constexpr int kQueryStages = 2;  // of keys and values passing queries
template <int kWidth>
using QueryLayout = Layout<kWidth, 128, kQueryStages, 2 * 128 * 4>;  // positions and segments

template <class T, int kWidth, bool kSimple>
__global__ void __launch_bounds__(kThreads, 1)
    queries_kernel(const __grid_constant__ AttentionCuda p, const __grid_constant__ Maps maps) {
  constexpr int kKeys = 128;
  extern __shared__ char shared_bytes[];
  __shared__ Barriers<kQueryStages> barriers;
  const QueryLayout<kWidth> shared{aligned_memory(shared_bytes)};
  const int tile = gridDim.y - 1 - blockIdx.y, head = blockIdx.x % p.heads, batch = blockIdx.x / p.heads;
  const int first = tile * kRows, key_head = head / p.group();
  if (threadIdx.x == 0) barriers.init();
  __syncthreads();
  Walk<kMaskTile / kKeys> walk(p.mask, true, batch, tile, head, 1);

  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x > 0) return;
    expect(&barriers.own, 2 * shared.own_first().kBytes);
    copy_tile(shared.own_first(), maps.own_first, &barriers.own, head, first, batch);
    copy_tile(shared.own_second(), maps.own_second, &barriers.own, head, first, batch);
    for (int n = 0; !walk.done(); walk.next(), ++n) {
      const int stage = n % kQueryStages;
      barrier_wait(&barriers.empty[stage], (n / kQueryStages & 1) ^ 1);
      uint64_t* const full = &barriers.full[stage];
      expect(full, shared.kStageBytes);
      const TileSlots slots = tile_slots(key_slots(p.mask, batch), walk.first());
      copy_bytes(shared.more(stage), slots.position, 4 * kKeys, full);
      copy_bytes(shared.more(stage) + 4 * kKeys, slots.segment, 4 * kKeys, full);
      copy_tile(shared.first(stage), maps.first, full, key_head, walk.first(), batch);
      copy_tile(shared.second(stage), maps.second, full, key_head, walk.first(), batch);
    }
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
  barrier_wait(&barriers.own, 0);
  for (int n = 0; !walk.done(); walk.next(), ++n) {
    const int stage = n % kQueryStages;
    barrier_wait(&barriers.full[stage], n / kQueryStages & 1);
    products_begin();
    start_scores<T, kWidth>(s, shared.own_first(), 64 * group, shared.first(stage));
    products_commit();
    start_scores<T, kWidth>(dp, shared.own_second(), 64 * group, shared.second(stage));
    products_commit();
    products_wait<1>();
    pin(s);
    if (!walk.full()) {
      const auto* here = reinterpret_cast<const int32_t*>(shared.more(stage));
      hide<kSimple>(p.mask, batch, limits, slots, walk.first(), {here, here + kKeys}, s);
    }
#pragma unroll
    for (int j = 0; j < kKeys / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) s[j][i] = fast_exp2(fmaf(s[j][i], unit, -lse2[i / 2]));
    pin(s);
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
    products_wait<0>();
    pin(dq);
    if (threadIdx.x % 128 == 0) barrier_arrive(&barriers.empty[stage]);
  }
  store_tile<T>(shared.own_first(), dq, p.scale, maps.out_first, head, first, batch, p.key_width);
  store_wait_read();
}

constexpr int kKeyStages = 3;  // of queries passing keys
template <int kWidth>
using KeyLayout = Layout<kWidth, 64, kKeyStages, 64 * 24>;  // limits, lse2 and delta

template <class T, int kWidth, bool kSimple>
__global__ void __launch_bounds__(kThreads, 1)
    keys_kernel(const __grid_constant__ AttentionCuda p, const __grid_constant__ Maps maps) {
  constexpr int kQueries = 64;
  extern __shared__ char shared_bytes[];
  __shared__ Barriers<kKeyStages> barriers;
  const KeyLayout<kWidth> shared{aligned_memory(shared_bytes)};
  const int tile = blockIdx.y, key_head = blockIdx.x % p.key_heads, batch = blockIdx.x / p.key_heads;
  const int first = tile * kRows;
  if (threadIdx.x == 0) barriers.init();
  __syncthreads();
  Walk<kMaskTile / kQueries> walk(p.mask, false, batch, tile, key_head * p.group(), p.group());

  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x > 0) return;
    expect(&barriers.own, 2 * shared.own_first().kBytes);
    copy_tile(shared.own_first(), maps.own_first, &barriers.own, key_head, first, batch);
    copy_tile(shared.own_second(), maps.own_second, &barriers.own, key_head, first, batch);
    for (int n = 0; !walk.done(); walk.next(), ++n) {
      const int stage = n % kKeyStages;
      barrier_wait(&barriers.empty[stage], (n / kKeyStages & 1) ^ 1);
      uint64_t* const full = &barriers.full[stage];
      expect(full, shared.kStageBytes);
      const int64_t statistics = statistics_at(p, batch, walk.head) + walk.first();
      copy_tile(shared.first(stage), maps.first, full, walk.head, walk.first(), batch);
      copy_bytes(shared.more(stage), limits_at(p.mask, batch, walk.first()), 16 * kQueries, full);
      copy_bytes(shared.more(stage) + 16 * kQueries, p.lse2 + statistics, 4 * kQueries, full);
      copy_tile(shared.second(stage), maps.second, full, walk.head, walk.first(), batch);
      copy_bytes(shared.more(stage) + 20 * kQueries, p.delta + statistics, 4 * kQueries, full);
    }
    return;
  }

  grow_registers<240>();
  const int group = threadIdx.x / 128 - 1, lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 - 64;
  const bool leader = threadIdx.x % 128 == 0;
  const KeySlots slots = key_slots(p.mask, batch);
  const float unit = p.scale * kLog2e;
  const LaneSlots rows(slots, first + row + lane / 4);
  float dk[kWidth / 8][4] = {}, dv[kWidth / 8][4] = {}, s[kQueries / 8][4], dp[kQueries / 8][4];
  barrier_wait(&barriers.own, 0);
  for (int n = 0; !walk.done(); walk.next(), ++n) {
    const int stage = n % kKeyStages;
    barrier_wait(&barriers.full[stage], n / kKeyStages & 1);
    products_begin();
    start_scores<T, kWidth>(s, shared.own_first(), 64 * group, shared.first(stage));
    products_commit();
    start_scores<T, kWidth>(dp, shared.own_second(), 64 * group, shared.second(stage));
    products_commit();
    products_wait<1>();
    pin(s);
    const auto* const limits = reinterpret_cast<const int4*>(shared.more(stage));
    const float* const lse2 = reinterpret_cast<const float*>(limits + kQueries) + lane % 4 * 2;
    if (!walk.full())
      hide_transposed<kSimple>(p.mask, batch, walk.head, walk.first(), limits, slots, rows, s);
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
    products_wait<0>();
    pin(dk);
    pin(dv);
    if (leader) barrier_arrive(&barriers.empty[stage]);
  }
  if (p.dk.data)
    store_tile<T>(shared.own_first(), dk, p.scale, maps.out_first, key_head, first, batch, p.key_width);
  if (p.dv.data)
    store_tile<T>(shared.own_second(), dv, 1, maps.out_second, key_head, first, batch, p.value_width);
  store_wait_read();
}

CudaRows rows_of(const AttentionOut& x, int64_t tokens, int64_t heads, int64_t width) {
  return {x.data, x.type, tokens * heads * width, heads * width, width};
}

// Calls make for each of the maps of a pass in turn until one fails.
template <class Kernel>
CudaStatus launch(Kernel* kernel, const AttentionCuda& p, const Maps& maps, int bytes, dim3 grid,
                  void* stream) {
  if (const auto error = allow_shared(kernel, bytes)) return status_of(error);
  kernel<<<grid, kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(p, maps);
  return last_status();
}

template <class T, int kWidth>
CudaStatus backward(const AttentionCuda& p, void* stream) {
  const bool simple = !p.mask.q_tree && p.mask.stripe_stride == 0;
  const auto map = [&](CUtensorMap& to, const CudaRows& x, bool of_queries, int width, int rows) {
    return make_tensor_map(&to, x, width, of_queries ? p.heads : p.key_heads, of_queries ? p.queries : p.keys,
                           p.batch, rows);
  };
  Maps maps;
  CudaStatus failed = map(maps.own_first, p.q, true, p.key_width, kRows);
  if (!failed) failed = map(maps.own_second, p.dout, true, p.value_width, kRows);
  if (!failed) failed = map(maps.first, p.k, false, p.key_width, 128);
  if (!failed) failed = map(maps.second, p.v, false, p.value_width, 128);
  if (!failed)
    failed = map(maps.out_first, rows_of(p.dq, p.queries, p.heads, p.key_width), true, p.key_width, 64);
  if (!failed) {
    const dim3 grid(p.heads * p.batch, p.mask.query_tiles);
    failed = launch(simple ? queries_kernel<T, kWidth, true> : queries_kernel<T, kWidth, false>, p, maps,
                    QueryLayout<kWidth>::kBytes, grid, stream);
  }
  if (failed || (!p.dk.data && !p.dv.data)) return failed;
  failed = map(maps.own_first, p.k, false, p.key_width, kRows);
  if (!failed) failed = map(maps.own_second, p.v, false, p.value_width, kRows);
  if (!failed) failed = map(maps.first, p.q, true, p.key_width, 64);
  if (!failed) failed = map(maps.second, p.dout, true, p.value_width, 64);
  if (!failed && p.dk.data)
    failed = map(maps.out_first, rows_of(p.dk, p.keys, p.key_heads, p.key_width), false, p.key_width, 64);
  if (!failed && p.dv.data)
    failed =
        map(maps.out_second, rows_of(p.dv, p.keys, p.key_heads, p.value_width), false, p.value_width, 64);
  if (failed) return failed;
  const dim3 grid(p.key_heads * p.batch, p.mask.key_tiles);
  return launch(simple ? keys_kernel<T, kWidth, true> : keys_kernel<T, kWidth, false>, p, maps,
                KeyLayout<kWidth>::kBytes, grid, stream);
}

}  // namespace

CudaStatus attention_backward_sm90(const AttentionCuda& p, const AttentionDevice& device) {
  void* const stream = device.stream;
  const bool narrow = std::max(p.key_width, p.value_width) <= 64;
  if (p.q.type == CudaType::bf16)
    return narrow ? backward<bf16, 64>(p, stream) : backward<bf16, 128>(p, stream);
  return narrow ? backward<fp16, 64>(p, stream) : backward<fp16, 128>(p, stream);
}

}  // namespace weft::kernels
