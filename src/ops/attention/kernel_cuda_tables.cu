// The mask in 32 bits, and the lists of tiles in which something is seen.
#include <algorithm>

#include "ops/attention/kernel_cuda_mask.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = kMaskTile;

// Smallest and largest over a tile of queries or of filled key slots. The phase is that of stripes.
struct QueryRange {
  int32_t high_min, high_max, low_min, low_max, segment_min, segment_max, prefix_min, prefix_max;
};
struct SlotRange {
  int32_t position_min, position_max, segment_min, segment_max, phase_min, phase_max, filled, unused;
};
constexpr int kRangeInts = 8;
static_assert(sizeof(QueryRange) == kRangeInts * 4 && sizeof(SlotRange) == kRangeInts * 4);

struct Problem {
  AttentionMaskInput in;
  int batch, queries, keys, heads, lists, query_tiles, key_tiles;
  int4* limits_to;
  int2* positions_to;
  int32_t* keys_to;
  QueryRange* query_ranges;  // [B, query_tiles]
  SlotRange* slot_ranges;    // [B, key_tiles]
  int32_t *row_counts, *row_lists, *key_counts, *key_lists;
};

__device__ int32_t clamped(int64_t x, int64_t lowest) {
  return static_cast<int32_t>(min(max(x, lowest), int64_t{INT_MAX}));
}

// Smallest and largest of `x` over the threads of the block for which `counts`.
__device__ void block_range(int32_t x, bool counts, int32_t& least, int32_t& most) {
  __shared__ int32_t low[kThreads / 32], high[kThreads / 32];
  const int32_t warp_low = __reduce_min_sync(0xffffffff, counts ? x : INT_MAX),
                warp_high = __reduce_max_sync(0xffffffff, counts ? x : INT_MIN);
  __syncthreads();
  if (threadIdx.x % 32 == 0) low[threadIdx.x / 32] = warp_low, high[threadIdx.x / 32] = warp_high;
  __syncthreads();
  least = min(min(low[0], low[1]), min(low[2], low[3]));
  most = max(max(high[0], high[1]), max(high[2], high[3]));
}

__device__ void make_queries(const Problem& p, int batch, int tile) {
  const AttentionMaskInput& in = p.in;
  const int token = tile * kMaskTile + threadIdx.x;
  const bool valid = token < p.queries;
  const int64_t i = int64_t{batch} * p.queries + (valid ? token : 0);
  const int64_t at = max(in.q_positions ? in.q_positions[i] : p.keys - p.queries + token, int64_t{-1});
  int64_t high = in.causal ? at : INT_MAX, low = in.window > 0 ? max(at - in.window, int64_t{-1}) : -1;
  if (in.q_range) {
    low = max(in.q_range[2 * i], int64_t{0}) - 1;
    high = max(in.q_range[2 * i + 1], int64_t{-1});
  }
  const int64_t sinks = min(in.sinks, high + 1);
  const int64_t prefix = max(in.q_prefix ? in.q_prefix[i] : 0, sinks);
  const int32_t last = clamped(high, -1), before = clamped(low, -1), end = clamped(prefix, 0),
                segment = in.q_segments ? clamped(in.q_segments[i], -INT_MAX) : 0;
  const int64_t to = int64_t{batch} * p.query_tiles * kMaskTile + token;
  const int span = static_cast<int>(max(int64_t{last} - before, int64_t{0}));  // unsigned when read
  p.limits_to[to] = valid ? make_int4(before + 1, span, end, segment) : make_int4(0, 0, 0, 0);
  p.positions_to[to] = valid ? make_int2(clamped(at, -1), last) : make_int2(-1, -1);
  QueryRange r;
  block_range(last, valid, r.high_min, r.high_max);
  block_range(before, valid, r.low_min, r.low_max);
  block_range(segment, valid, r.segment_min, r.segment_max);
  block_range(end, valid, r.prefix_min, r.prefix_max);
  if (threadIdx.x == 0) p.query_ranges[int64_t{batch} * p.query_tiles + tile] = r;
}

__device__ void make_keys(const Problem& p, int batch, int tile) {
  const AttentionMaskInput& in = p.in;
  const int slot = tile * kMaskTile + threadIdx.x;
  const bool valid = slot < p.keys;
  const int64_t i = int64_t{batch} * p.keys + (valid ? slot : 0), slots = int64_t{p.key_tiles} * kMaskTile,
                count = p.batch * slots, to = batch * slots + slot;
  const int32_t position = !valid ? -1 : in.k_positions ? clamped(in.k_positions[i], -1) : slot;
  const int32_t segment = valid && in.k_segments ? clamped(in.k_segments[i], -INT_MAX) : 0;
  const int32_t phase = in.stripe_block > 0 && position >= 0
                            ? static_cast<int32_t>(position / in.stripe_block % in.stripe_stride)
                            : -1;
  p.keys_to[to] = position;
  p.keys_to[count + to] = segment;
  p.keys_to[2 * count + to] = phase;
  SlotRange r;
  block_range(position, position >= 0, r.position_min, r.position_max);
  block_range(segment, position >= 0, r.segment_min, r.segment_max);
  block_range(phase, position >= 0, r.phase_min, r.phase_max);
  r.filled = __syncthreads_count(position >= 0);
  r.unused = 0;
  if (threadIdx.x == 0) p.slot_ranges[int64_t{batch} * p.key_tiles + tile] = r;
}

__global__ void __launch_bounds__(kThreads) tables_kernel(Problem p) {
  const int tile = blockIdx.x, batch = blockIdx.y;
  if (tile < p.query_tiles)
    make_queries(p, batch, tile);
  else
    make_keys(p, batch, tile - p.query_tiles);
}

// 0: no query sees any of the keys; 3: every one sees all of them; 2: neither is sure.
__device__ int classify(const Problem& p, int batch, int list, const QueryRange& q, const SlotRange& k) {
  if (k.filled == 0 || k.segment_min > q.segment_max || k.segment_max < q.segment_min) return 0;
  bool some_stripe = false, all_stripe = false;
  if (p.in.stripe_block > 0) {
    const int64_t offset = p.in.stripe_offsets ? p.in.stripe_offsets[list] : 0;
    const int64_t phase = p.in.stripe_stride - 1 - offset % p.in.stripe_stride;
    some_stripe = phase >= k.phase_min && phase <= k.phase_max;
    all_stripe = some_stripe && k.phase_min == k.phase_max;
  }
  bool tree = false;
  if (p.in.q_tree) {
    const int64_t begin = p.in.tree_begin[batch];
    tree = k.position_max >= begin && k.position_min < begin + 64 * p.in.tree_words;
  }
  const bool range = k.position_min <= q.high_max && (k.position_max > q.low_min || some_stripe);
  if (!range && k.position_min >= q.prefix_max && !tree) return 0;
  const bool same =
      k.segment_min == k.segment_max && q.segment_min == q.segment_max && k.segment_min == q.segment_min;
  const bool ended = k.position_max <= q.high_min;
  const bool all = (ended && (k.position_min > q.low_max || all_stripe)) || k.position_max < q.prefix_min;
  return k.filled == kMaskTile && same && all ? 3 : 2;
}

// One warp makes the list of one tile of queries, or of keys: `item` over [B, lists, query_tiles + key_tiles].
__global__ void __launch_bounds__(kThreads) lists_kernel(Problem p) {
  const int lane = threadIdx.x % 32, tiles = p.query_tiles + p.key_tiles;
  const int item = blockIdx.x * (kThreads / 32) + threadIdx.x / 32;
  if (item >= tiles) return;
  const int list = blockIdx.y % p.lists, batch = blockIdx.y / p.lists;
  const bool by_row = item < p.query_tiles;
  const int tile = by_row ? item : item - p.query_tiles, others = by_row ? p.key_tiles : p.query_tiles;
  const int64_t at = int64_t{blockIdx.y} * (by_row ? p.query_tiles : p.key_tiles) + tile;
  int32_t* to = (by_row ? p.row_lists : p.key_lists) + at * others;
  const QueryRange* queries = p.query_ranges + int64_t{batch} * p.query_tiles;
  const SlotRange* slots = p.slot_ranges + int64_t{batch} * p.key_tiles;
  constexpr int kTogether = 4;  // classified before one is written: their loads overlap
  int count = 0;
  for (int first = lane; first - lane < others; first += 32 * kTogether) {
    int kind[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int other = min(first + 32 * i, others - 1);
      kind[i] = by_row ? classify(p, batch, list, queries[tile], slots[other])
                       : classify(p, batch, list, queries[other], slots[tile]);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int other = first + 32 * i;
      const bool listed = other < others && kind[i] != 0;
      const unsigned all = __ballot_sync(0xffffffff, listed);
      if (listed) to[count + __popc(all & ((1u << lane) - 1))] = 2 * other + (kind[i] & 1);
      count += __popc(all);
    }
  }
  if (lane == 0) (by_row ? p.row_counts : p.key_counts)[at] = count;
}

int lists_of(const AttentionMaskInput& in, int64_t heads) {
  return in.stripe_offsets ? static_cast<int>(heads) : 1;
}

}  // namespace

int64_t attention_mask_size(const AttentionMaskInput& in, int64_t batch, int64_t queries, int64_t keys,
                            int64_t heads) {
  const int64_t rows = mask_tiles(queries), columns = mask_tiles(keys), lists = lists_of(in, heads);
  return batch * ((rows + columns) * kRangeInts + 6 * rows * kMaskTile + 3 * columns * kMaskTile +
                  lists * (rows + columns + 2 * rows * columns));
}

CudaStatus attention_mask_tables(const AttentionMaskInput& in, const AttentionCuda& a, int32_t* tables,
                                 AttentionMask& mask, const AttentionDevice& device) {
  Problem p{in,
            a.batch,
            a.queries,
            a.keys,
            a.heads,
            lists_of(in, a.heads),
            mask_tiles(a.queries),
            mask_tiles(a.keys)};
  const int64_t batch = p.batch, rows = p.query_tiles, columns = p.key_tiles;
  const auto take = [&](int64_t count) {
    int32_t* part = tables;
    tables += count;
    return part;
  };
  p.limits_to = reinterpret_cast<int4*>(take(4 * batch * rows * kMaskTile));
  p.positions_to = reinterpret_cast<int2*>(take(2 * batch * rows * kMaskTile));
  p.keys_to = take(3 * batch * columns * kMaskTile);
  p.query_ranges = reinterpret_cast<QueryRange*>(take(batch * rows * kRangeInts));
  p.slot_ranges = reinterpret_cast<SlotRange*>(take(batch * columns * kRangeInts));
  p.row_counts = take(batch * p.lists * rows);
  p.key_counts = take(batch * p.lists * columns);
  p.row_lists = take(batch * p.lists * rows * columns);
  p.key_lists = take(batch * p.lists * rows * columns);
  mask = {};
  mask.limits = &p.limits_to->x, mask.positions = &p.positions_to->x, mask.keys = p.keys_to;
  mask.row_counts = p.row_counts, mask.row_lists = p.row_lists;
  mask.key_counts = p.key_counts, mask.key_lists = p.key_lists;
  mask.q_tree = in.q_tree, mask.tree_begin = in.tree_begin, mask.tree_words = in.tree_words;
  mask.stripe_offsets = in.stripe_offsets;
  if (in.stripe_block > 0)
    mask.stripe_stride = static_cast<int>(std::min<int64_t>(in.stripe_stride, INT_MAX));
  mask.lists = p.lists, mask.query_tiles = p.query_tiles, mask.key_tiles = p.key_tiles;
  mask.batch = p.batch, mask.queries = p.queries;
  mask.segments = in.q_segments != nullptr;
  if (batch * (rows + columns) == 0) return nullptr;
  const auto stream = static_cast<cudaStream_t>(device.stream);
  const dim3 grid(p.query_tiles + p.key_tiles, p.batch);
  tables_kernel<<<grid, kThreads, 0, stream>>>(p);
  const dim3 list_grid((grid.x + kThreads / 32 - 1) / (kThreads / 32), p.batch * p.lists);
  lists_kernel<<<list_grid, kThreads, 0, stream>>>(p);
  return last_status();
}

}  // namespace weft::kernels
