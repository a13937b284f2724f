// Forward attention on Hopper, scores without cap and bias: a warpgroup whose one thread feeds the copy engine, two that multiply and own 64 queries
// each. The products of the next scores run while the exponentials of the last are multiplied by the values.
#include <algorithm>

#include "ops/attention/kernel_cuda_hopper.cuh"

namespace weft::kernels {
namespace {

constexpr int kRows = kMaskTile, kThreads = 384, kStages = 2;

// Queries, stages of keys and values, and results on their way out: where the queries were, if heads are wide.
template <int kHeadWidth>
struct Shared {
  static constexpr int kWidth = kHeadWidth, kKeys = kWidth > 128 ? 64 : 128;
  static constexpr bool kOwnResults = kWidth <= 128;
  using Queries = Tile<kRows, kWidth>;
  using Keys = Tile<kKeys, kWidth>;
  static constexpr int kMaskBytes = 2 * kKeys * 4;  // positions and segments of the keys of a stage
  static constexpr int kStageBytes = 2 * Keys::kBytes, kStagesAt = (kOwnResults ? 2 : 1) * Queries::kBytes,
                       kMaskAt = kStagesAt + kStages * kStageBytes;
  static constexpr int kBytes = kMaskAt + kStages * kMaskBytes + 1024;  // and alignment
  char* memory;

  __device__ Queries queries() const { return {memory}; }
  __device__ Queries results() const { return {memory + (kOwnResults ? Queries::kBytes : 0)}; }
  __device__ Keys keys(int n) const { return {memory + kStagesAt + n % kStages * kStageBytes}; }
  __device__ Keys values(int n) const { return {keys(n).data + Keys::kBytes}; }
  __device__ int32_t* slots(int n) const {
    return reinterpret_cast<int32_t*>(memory + kMaskAt + n % kStages * kMaskBytes);
  }
};

struct Barriers {
  uint64_t queries_full, queries_empty, keys_full[kStages], keys_empty[kStages], values_full[kStages],
      values_empty[kStages];

  __device__ void init() {
    barrier_init(&queries_full, 1), barrier_init(&queries_empty, 2);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&keys_full[i], 1), barrier_init(&values_full[i], 1);
      barrier_init(&keys_empty[i], 2), barrier_init(&values_empty[i], 2);
    }
    barrier_init_fence();
  }
};
// Of the use number n of something that has so many stages.
__device__ __forceinline__ uint32_t parity(int n) { return n / kStages & 1; }

struct Maps {
  CUtensorMap q, k, v, out;
};

// A tile of queries of one head. Heads come in groups whose keys and values stay in the second-level cache; in a group,
// long lists (under causal masks those of the last queries) first. A block takes every gridDim.x-th.
template <int kKeys>
struct Item {
  static constexpr int kParts = kMaskTile / kKeys;
  int tile, head, batch, key_head, count;
  const int32_t* list;

  __device__ __forceinline__ Item(const AttentionCuda& p, int index, int heads_together) {
    const int heads = p.batch * p.heads, tiles = p.mask.query_tiles;
    const int group = index / (heads_together * tiles), inside = index - group * heads_together * tiles;
    const int together = min(heads_together, heads - group * heads_together);
    const int both = group * heads_together + inside % together;
    tile = tiles - 1 - inside / together, head = both % p.heads, batch = both / p.heads;
    key_head = head / p.group();
    list = row_list(p.mask, batch, head, tile, count);
    count *= kParts;
  }
  __device__ __forceinline__ int first() const { return tile * kRows; }
  __device__ __forceinline__ int entry(int i) const { return list[i / kParts]; }
  __device__ __forceinline__ int slot(int entry, int i) const {
    return (entry >> 1) * kMaskTile + i % kParts * kKeys;
  }
};

template <int kWidth>
__device__ void produce(const AttentionCuda& p, const Maps& maps, const Shared<kWidth>& shared,
                        Barriers& barriers, int items, int heads_together) {
  const auto fill = [&](const auto& tile, const CUtensorMap& map, uint64_t* full, int head, int first,
                        int batch) {
    barrier_expect(full, tile.kBytes);
    barrier_arrive(full);
    copy_tile(tile, map, full, head, first, batch);
  };
  constexpr int kKeys = Shared<kWidth>::kKeys;
  int n = 0, round = 0;
  for (int index = blockIdx.x; index < items; index += gridDim.x) {
    const Item<kKeys> item(p, index, heads_together);
    barrier_wait(&barriers.queries_empty, round++ & 1 ^ 1);
    fill(shared.queries(), maps.q, &barriers.queries_full, item.head, item.first(), item.batch);
    for (int i = 0; i < item.count; ++i, ++n) {
      const int slot = item.slot(item.entry(i), i);
      barrier_wait(&barriers.keys_empty[n % kStages], parity(n) ^ 1);
      uint64_t* const full = &barriers.keys_full[n % kStages];
      const KeySlots slots = key_slots(p.mask, item.batch);
      barrier_expect(full, shared.kMaskBytes);
      copy_bytes(shared.slots(n), slots.position + slot, 4 * kKeys, full);
      copy_bytes(shared.slots(n) + kKeys, slots.segment + slot, 4 * kKeys, full);
      fill(shared.keys(n), maps.k, full, item.key_head, slot, item.batch);
      barrier_wait(&barriers.values_empty[n % kStages], parity(n) ^ 1);
      fill(shared.values(n), maps.v, &barriers.values_full[n % kStages], item.key_head, slot, item.batch);
    }
  }
}

// kSimple: neither tree nor stripes.
template <class T, int kWidth, bool kSimple>
__device__ __forceinline__ void consume(const AttentionCuda& p, const Maps& maps,
                                        const Shared<kWidth>& shared, Barriers& barriers, int items,
                                        int heads_together) {
  const int group = threadIdx.x / 128 - 1, lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 - 64;
  const bool leader = threadIdx.x % 128 == 0;
  const float unit = p.scale * kLog2e;
  constexpr int kKeys = Shared<kWidth>::kKeys;
  int n = 0, round = 0;
  for (int index = blockIdx.x; index < items; index += gridDim.x) {
    const Item<kKeys> item(p, index, heads_together);
    const int first = item.first();
    const QueryLimits limits[2] = {query_limits(p.mask, item.batch, first + row + lane / 4, item.head),
                                   query_limits(p.mask, item.batch, first + row + lane / 4 + 8, item.head)};
    const KeySlots slots = key_slots(p.mask, item.batch);
    OnlineSoftmax softmax;
    float out[kWidth / 8][4] = {};
    barrier_wait(&barriers.queries_full, round++ & 1);
    if (item.count > 0) {
      float s[kKeys / 8][4], shrink[2];
      uint32_t weights[kKeys / 16][4];
      const auto start_next_scores = [&] {
        barrier_wait(&barriers.keys_full[n % kStages], parity(n));
        products_begin();
        start_scores<T, kWidth>(s, shared.queries(), 64 * group, shared.keys(n));
        products_commit();
      };
      const auto start_last_sums = [&] {  // of the keys before n
        barrier_wait(&barriers.values_full[(n - 1) % kStages], parity(n - 1));
        products_begin();
        start_sums<T, kWidth, kKeys>(out, weights, shared.values(n - 1));
        products_commit();
      };
      const auto finish_scores = [&](int entry, int i) {
        pin(s);
        if (!(entry & 1)) {
          const TileSlots here{shared.slots(n), shared.slots(n) + kKeys};
          hide<kSimple>(p.mask, item.batch, limits, slots, item.slot(entry, i), here, s);
        }
        if (leader) barrier_arrive(&barriers.keys_empty[n % kStages]);
        softmax.step(unit, s, shrink);
      };
      const auto finish_sums = [&] {
        products_wait<0>();
        pin(out);
        if (leader) barrier_arrive(&barriers.values_empty[(n - 1) % kStages]);
      };
      start_next_scores();
      products_wait<0>();
      finish_scores(item.entry(0), 0);
      as_operands<T>(weights, s);
      ++n;
      for (int i = 1; i < item.count; ++i, ++n) {
        const int entry = item.entry(i);
        start_next_scores();
        start_last_sums();
        products_wait<1>();
        finish_scores(entry, i);
        finish_sums();
#pragma unroll
        for (int j = 0; j < kWidth / 8; ++j)
#pragma unroll
          for (int c = 0; c < 4; ++c) out[j][c] *= shrink[c / 2];
        as_operands<T>(weights, s);
      }
      if (leader && shared.kOwnResults) barrier_arrive(&barriers.queries_empty);
      start_last_sums();
      finish_sums();
    } else if (leader && shared.kOwnResults) {
      barrier_arrive(&barriers.queries_empty);
    }

    float lse[2], inverse[2];
    softmax.finish(unit, lse, inverse);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int token = first + row + lane / 4 + 8 * r;
      if (lane % 4 == 0 && token < p.queries)
        p.lse[(int64_t{item.batch} * p.queries + token) * p.heads + item.head] = lse[r];
    }
    if (leader) store_wait_read();  // of the item before
    named_barrier(1 + group, 128);
    write_rows<T>(shared.results(), row, out, inverse);
    async_fence();
    named_barrier(1 + group, 128);
    if (!leader) continue;
#pragma unroll
    for (int c = 0; c < kWidth; c += 64)
      if (c < p.value_width && first + 64 * group < p.queries)
        store_panel(&maps.out,
                    shared.results().data + c / 64 * shared.results().kPanelBytes + 64 * group * 128, c,
                    item.head, first + 64 * group, item.batch);
    store_commit();
    if (shared.kOwnResults) continue;
    store_wait_read();
    barrier_arrive(&barriers.queries_empty);
  }
  if (leader) store_wait_read();
}

template <class T, int kWidth, bool kSimple>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ AttentionCuda p, const __grid_constant__ Maps maps, int items,
                   int heads_together) {
  extern __shared__ char shared_bytes[];
  __shared__ Barriers barriers;
  const Shared<kWidth> shared{aligned_memory(shared_bytes)};
  if (threadIdx.x == 0) barriers.init();
  __syncthreads();
  if (threadIdx.x < 128) {
    shrink_registers<24>();
    if (threadIdx.x == 0) produce(p, maps, shared, barriers, items, heads_together);
  } else {
    grow_registers<240>();
    consume<T, kWidth, kSimple>(p, maps, shared, barriers, items, heads_together);
  }
}

template <class T, int kWidth>
CudaStatus launch(const AttentionCuda& p, const AttentionDevice& device) {
  Maps maps;
  CudaRows out{p.out.data, p.out.type, int64_t{p.queries} * p.heads * p.value_width,
               int64_t{p.heads} * p.value_width, p.value_width};
  CudaStatus failed = make_tensor_map(&maps.q, p.q, p.key_width, p.heads, p.queries, p.batch, kRows);
  if (!failed)
    failed = make_tensor_map(&maps.k, p.k, p.key_width, p.key_heads, p.keys, p.batch, Shared<kWidth>::kKeys);
  if (!failed)
    failed =
        make_tensor_map(&maps.v, p.v, p.value_width, p.key_heads, p.keys, p.batch, Shared<kWidth>::kKeys);
  if (!failed) failed = make_tensor_map(&maps.out, out, p.value_width, p.heads, p.queries, p.batch, 64);
  if (failed) return failed;
  const bool simple = !p.mask.q_tree && p.mask.stripe_stride == 0;
  const auto kernel = simple ? forward_kernel<T, kWidth, true> : forward_kernel<T, kWidth, false>;
  constexpr int kBytes = Shared<kWidth>::kBytes;
  if (const auto error = allow_shared(kernel, kBytes)) return status_of(error);
  constexpr int64_t kCacheBytes = 24 << 20;
  const int64_t head_bytes = 2 * int64_t{p.keys} * (p.key_width + p.value_width) / p.group();
  const int heads = p.batch * p.heads;
  const int together =
      static_cast<int>(std::clamp<int64_t>(kCacheBytes / std::max<int64_t>(head_bytes, 1), 1, heads));
  const int items = heads * p.mask.query_tiles;
  kernel<<<std::min(items, device.multiprocessors), kThreads, kBytes,
           static_cast<cudaStream_t>(device.stream)>>>(p, maps, items, together);
  return last_status();
}

}  // namespace

CudaStatus attention_forward_sm90(const AttentionCuda& p, const AttentionDevice& device) {
  const auto by_width = [&]<class T>(T) {
    const int width = std::max(p.key_width, p.value_width);
    return width <= 64    ? launch<T, 64>(p, device)
           : width <= 128 ? launch<T, 128>(p, device)
                          : launch<T, 256>(p, device);
  };
  return p.q.type == CudaType::bf16 ? by_width(bf16{}) : by_width(fp16{});
}

}  // namespace weft::kernels
