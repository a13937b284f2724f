// Forward attention on Hopper, scores without cap and bias: a warpgroup whose one thread feeds the copy engine, two that
// multiply and own 64 queries each. The products of the next scores run while the exponentials of the last are multiplied
// by the values.
#include <algorithm>

#include "ops/attention/kernel_cuda_hopper.cuh"

namespace weft::kernels {
namespace {

constexpr int kRows = kMaskTile, kThreads = 384;

// Queries, stages of keys and values, and results on their way out: where the queries were, if heads are wide.
template <int kHeadWidth>
struct Shared {
  static constexpr int kWidth = kHeadWidth, kKeys = kWidth > 128 ? 64 : 128;
  static constexpr int kStages = kWidth > 64 ? 2 : 4;
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

// `steps` says which keys a stage holds and what of the mask is known, written before the barrier of the keys is full.
template <int kStages>
struct Barriers {
  uint64_t queries_full, queries_empty, keys_full[kStages], keys_empty[kStages], values_full[kStages],
      values_empty[kStages];
  int32_t steps[kStages];  // the first slot + 2 if no other of its queries follows + 1 if all pairs are seen

  __device__ void init() {
    barrier_init(&queries_full, 1), barrier_init(&queries_empty, 2);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&keys_full[i], 1), barrier_init(&values_full[i], 1);
      barrier_init(&keys_empty[i], 8), barrier_init(&values_empty[i], 2);  // by warps and by warpgroups
    }
    barrier_init_fence();
  }
};
template <int kWidth>
using BarriersOf = Barriers<Shared<kWidth>::kStages>;

// Of the use number n of something that has so many stages.
template <int kStages>
__device__ __forceinline__ uint32_t parity(int n) {
  return n / kStages & 1;
}

struct Maps {
  CUtensorMap q, k, v, out;
};

// A tile of queries of one head. Heads come in groups whose keys and values stay in the second-level cache; in a group,
// long lists (under causal masks those of the last queries) first. A block takes every gridDim.x-th.
struct Item {
  int tile, head, batch;

  __device__ __forceinline__ Item(const AttentionCuda& p, int index, int heads_together) {
    const int heads = p.batch * p.heads, tiles = p.mask.query_tiles;
    const int group = index / (heads_together * tiles), inside = index - group * heads_together * tiles;
    const int together = min(heads_together, heads - group * heads_together);
    const int both = group * heads_together + inside % together;
    tile = tiles - 1 - inside / together, head = both % p.heads, batch = both / p.heads;
  }
  __device__ __forceinline__ int first() const { return tile * kRows; }
};

template <int kWidth>
__device__ void produce(const AttentionCuda& p, const Maps& maps, const Shared<kWidth>& shared,
                        BarriersOf<kWidth>& barriers, int items, int heads_together) {
  const auto fill = [&](const auto& tile, const CUtensorMap& map, uint64_t* full, int head, int first,
                        int batch) {
    barrier_expect(full, tile.kBytes);
    barrier_arrive(full);
    copy_tile(tile, map, full, head, first, batch);
  };
  constexpr int kKeys = shared.kKeys, kStages = shared.kStages;
  int n = 0, round = 0;
  for (int index = blockIdx.x; index < items; index += gridDim.x, ++round) {
    const Item item(p, index, heads_together);
    const int key_head = item.head / p.group();
    Walk<kMaskTile / kKeys> walk(p.mask, true, item.batch, item.tile, item.head, 1);
    barrier_wait(&barriers.queries_empty, round & 1 ^ 1);
    fill(shared.queries(), maps.q, &barriers.queries_full, item.head, item.first(), item.batch);
    for (bool last = false; !last; ++n) {
      // Queries that see nothing have one step, of keys hidden from them.
      const bool empty = walk.done();
      const int slot = empty ? 0 : walk.first(), stage = n % kStages;
      const bool all = !empty && walk.full();
      if (!empty) walk.next();
      last = walk.done();
      barrier_wait(&barriers.keys_empty[stage], parity<kStages>(n) ^ 1);
      uint64_t* const full = &barriers.keys_full[stage];
      const KeySlots slots = key_slots(p.mask, item.batch);
      barriers.steps[stage] = slot + 2 * last + all;
      if (!p.mask.rule) {
        barrier_expect(full, shared.kMaskBytes);
        copy_bytes(shared.slots(n), slots.positions + slot, 4 * kKeys, full);
        copy_bytes(shared.slots(n) + kKeys, slots.segments + slot, 4 * kKeys, full);
      }
      fill(shared.keys(n), maps.k, full, key_head, slot, item.batch);
      barrier_wait(&barriers.values_empty[stage], parity<kStages>(n) ^ 1);
      fill(shared.values(n), maps.v, &barriers.values_full[stage], key_head, slot, item.batch);
    }
  }
}

// The two warpgroups start their products in turn, so that one's run while the other has exponentials.
struct Turns {
  static constexpr int kFirst = 3;  // of their barriers
  int group;

  __device__ __forceinline__ void begin() const {
    if (group == 1) named_arrive(kFirst, 256);
  }
  __device__ __forceinline__ void take() const { named_barrier(kFirst + group, 256); }
  __device__ __forceinline__ void pass() const { named_arrive(kFirst + 1 - group, 256); }
  __device__ __forceinline__ void end() const {
    if (group == 0) take();
  }
};

// kSimple: neither tree nor stripes.
template <class T, int kWidth, bool kSimple>
__device__ __forceinline__ void consume(const AttentionCuda& p, const Maps& maps,
                                        const Shared<kWidth>& shared, BarriersOf<kWidth>& barriers, int items,
                                        int heads_together) {
  constexpr int kKeys = Shared<kWidth>::kKeys, kStages = Shared<kWidth>::kStages;
  const int group = threadIdx.x / 128 - 1, lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 - 64;
  const bool leader = threadIdx.x % 128 == 0;
  const float unit = p.scale * kLog2e;
  const Turns turns{group};
  float s[kKeys / 8][4];
  const auto wait_for_keys = [&](int n) {
    barrier_wait(&barriers.keys_full[n % kStages], parity<kStages>(n));
  };
  const auto start_scores_of = [&](int n) {
    products_begin();
    start_scores<T, kWidth>(s, shared.queries(), 64 * group, shared.keys(n));
    products_commit();
  };
  float out[kWidth / 8][4] = {}, shrink[2];
  uint32_t weights[kKeys / 16][4];
  const auto start_sums_of = [&](int n) {
    barrier_wait(&barriers.values_full[n % kStages], parity<kStages>(n));
    products_begin();
    start_sums<T, kWidth, kKeys>(out, weights, shared.values(n));
    products_commit();
  };
  const auto finish_sums = [&](int n) {
    pin(out);
    if (leader) barrier_arrive(&barriers.values_empty[n % kStages]);
  };

  int n = 0, round = 0;
  turns.begin();
  for (int index = blockIdx.x; index < items; index += gridDim.x, ++round) {
    const Item item(p, index, heads_together);
    const int first = item.first();
    const QueryLimits limits[2] = {query_limits(p.mask, item.batch, first + row + lane / 4, item.head),
                                   query_limits(p.mask, item.batch, first + row + lane / 4 + 8, item.head)};
    OnlineSoftmax softmax;
    bool over;  // the last scores are the item's last
    const auto finish_scores = [&] {
      pin(s);
      const int step = barriers.steps[n % kStages];
      if (!(step & 1)) {
        const TileSlots here{shared.slots(n), shared.slots(n) + kKeys};
        hide<kSimple>(p.mask, item.batch, limits, key_slots(p.mask, item.batch), step & ~3, here, s);
      }
      over = step & 2;
      __syncwarp();
      if (lane == 0) barrier_arrive(&barriers.keys_empty[n % kStages]);
      const bool grown = softmax.step_seldom(unit, s, shrink);
      pin(s);
      // A branch between exponentials and the wait for products: else the assembler lets the former wait too.
      if (!over) wait_for_keys(n + 1);
      return grown;
    };
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) out[j][c] = 0;
    barrier_wait(&barriers.queries_full, round & 1);
    wait_for_keys(n);
    turns.take();
    start_scores_of(n);
    turns.pass();
    products_wait<0>();
    finish_scores();
    as_operands<T>(weights, s);
    for (++n; !over; ++n) {
      turns.take();
      start_scores_of(n);
      start_sums_of(n - 1);
      turns.pass();
      products_wait<1>();
      const bool grown = finish_scores();
      products_wait<0>();
      finish_sums(n - 1);
      if (grown)
#pragma unroll
        for (int j = 0; j < kWidth / 8; ++j)
#pragma unroll
          for (int c = 0; c < 4; ++c) out[j][c] *= shrink[c / 2];
      as_operands<T>(weights, s);
    }
    if (leader && shared.kOwnResults) barrier_arrive(&barriers.queries_empty);
    start_sums_of(n - 1);
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
    products_wait<0>();
    finish_sums(n - 1);
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
  turns.end();
  if (leader) store_wait_read();
}

template <class T, int kWidth, bool kSimple>
__global__ void __launch_bounds__(kThreads, 1)
    forward_kernel(const __grid_constant__ AttentionCuda p, const __grid_constant__ Maps maps, int items,
                   int heads_together) {
  extern __shared__ char shared_bytes[];
  __shared__ BarriersOf<kWidth> barriers;
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
