// The mask in 32 bits, and the runs of tiles in which something is seen; nothing of the kind for masks without tensors.
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
  int32_t *row_counts, *key_counts;
  TileRun *row_runs, *key_runs;
  int row_most, key_most;
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

// One warp makes the runs of one tile of queries, or of keys: `item` over [B, lists, query_tiles + key_tiles].
__global__ void __launch_bounds__(kThreads) runs_kernel(Problem p) {
  const int lane = threadIdx.x % 32, tiles = p.query_tiles + p.key_tiles;
  const int64_t item = int64_t{blockIdx.x} * (kThreads / 32) + threadIdx.x / 32, owner = item / tiles;
  if (owner >= int64_t{p.batch} * p.lists) return;
  const int list = static_cast<int>(owner % p.lists), batch = static_cast<int>(owner / p.lists);
  const int place = static_cast<int>(item - owner * tiles);
  const bool by_row = place < p.query_tiles;
  const int tile = by_row ? place : place - p.query_tiles, others = by_row ? p.key_tiles : p.query_tiles,
            most = by_row ? p.row_most : p.key_most;
  const int64_t at = owner * (by_row ? p.query_tiles : p.key_tiles) + tile;
  TileRun* const to = (by_row ? p.row_runs : p.key_runs) + at * most;
  const QueryRange* queries = p.query_ranges + int64_t{batch} * p.query_tiles;
  const SlotRange* slots = p.slot_ranges + int64_t{batch} * p.key_tiles;
  constexpr int kTogether = 4;        // classified before one is written: their loads overlap
  int runs = 0, before = 0, end = 0;  // runs begun, kind of the tile before, end of the last tile in a run
  for (int first = 0; first < others; first += 32 * kTogether) {
    int kind[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int other = min(first + 32 * i + lane, others - 1);
      kind[i] = by_row ? classify(p, batch, list, queries[tile], slots[other])
                       : classify(p, batch, list, queries[other], slots[tile]);
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int start = first + 32 * i, other = start + lane, now = other < others ? kind[i] : 0;
      const int above = __shfl_up_sync(0xffffffff, now, 1), previous = lane == 0 ? before : above;
      const bool begins = now != 0 && now != previous, ends = previous != 0 && now != previous;
      const unsigned begun = __ballot_sync(0xffffffff, begins), listed = __ballot_sync(0xffffffff, now != 0);
      const int run = runs + __popc(begun & ((1u << lane) - 1));
      if (ends && run < most) to[run - 1].end = other;
      if (begins && run < most) to[run].begin = 2 * other + (now & 1);
      runs += __popc(begun);
      if (listed) end = start + 32 - __clz(listed);
      before = __shfl_sync(0xffffffff, now, 31);
    }
  }
  __syncwarp();
  if (lane > 0) return;
  if (runs > 0) to[min(runs, most) - 1].end = end;
  if (runs > most) to[most - 1].begin &= ~1;
  (by_row ? p.row_counts : p.key_counts)[at] = min(runs, most);
}

int lists_of(const AttentionMaskInput& in, int64_t heads) {
  return in.stripe_offsets ? static_cast<int>(heads) : 1;
}

bool is_rule(const AttentionMaskInput& in) {
  for (const int64_t* x : {in.q_positions, in.k_positions, in.q_segments, in.q_range, in.q_prefix, in.q_tree})
    if (x) return false;
  return in.stripe_block == 0;
}

// Room for runs of a tile over `others` tiles: a few for ranges, sinks, prefixes and segments, and three for a stripe.
int most_runs(const AttentionMaskInput& in, int64_t others) {
  int64_t runs = 16;
  if (in.stripe_block > 0) runs += 3 * (others * kMaskTile / in.stripe_block / in.stripe_stride + 2);
  return static_cast<int>(std::min(others, runs));
}

AttentionMask without_tables(const AttentionMaskInput& in, const AttentionCuda& a) {
  AttentionMask mask;
  mask.causal = in.causal, mask.window = in.window < a.keys ? static_cast<int>(in.window) : 0;
  mask.sinks = static_cast<int>(std::min<int64_t>(in.sinks, a.keys));
  mask.rule = is_rule(in);
  mask.q_tree = in.q_tree, mask.tree_begin = in.tree_begin, mask.tree_words = in.tree_words;
  mask.stripe_offsets = in.stripe_offsets;
  if (in.stripe_block > 0)
    mask.stripe_stride = static_cast<int>(std::min<int64_t>(in.stripe_stride, INT_MAX));
  mask.lists = lists_of(in, a.heads);
  mask.query_tiles = mask_tiles(a.queries), mask.key_tiles = mask_tiles(a.keys);
  mask.row_most = most_runs(in, mask.key_tiles), mask.key_most = most_runs(in, mask.query_tiles);
  mask.batch = a.batch, mask.queries = a.queries, mask.keys = a.keys;
  mask.segments = in.q_segments != nullptr;
  return mask;
}

}  // namespace

int64_t attention_mask_size(const AttentionMaskInput& in, int64_t batch, int64_t queries, int64_t keys,
                            int64_t heads) {
  if (is_rule(in)) return 0;
  const int64_t rows = mask_tiles(queries), columns = mask_tiles(keys), lists = lists_of(in, heads);
  return batch *
         ((rows + columns) * kRangeInts + 6 * rows * kMaskTile + 3 * columns * kMaskTile +
          lists * (rows * (1 + 2 * most_runs(in, columns)) + columns * (1 + 2 * most_runs(in, rows))));
}

CudaStatus attention_mask_tables(const AttentionMaskInput& in, const AttentionCuda& a, int32_t* tables,
                                 AttentionMask& mask, const AttentionDevice& device) {
  mask = without_tables(in, a);
  if (mask.rule) return nullptr;
  Problem p{in, a.batch, a.queries, a.keys, a.heads, mask.lists, mask.query_tiles, mask.key_tiles};
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
  p.row_most = mask.row_most, p.key_most = mask.key_most;
  p.row_runs = reinterpret_cast<TileRun*>(take(2 * batch * p.lists * rows * p.row_most));
  p.key_runs = reinterpret_cast<TileRun*>(take(2 * batch * p.lists * columns * p.key_most));
  p.row_counts = take(batch * p.lists * rows);
  p.key_counts = take(batch * p.lists * columns);
  mask.limits = &p.limits_to->x, mask.positions = &p.positions_to->x, mask.slots = p.keys_to;
  mask.row_counts = p.row_counts, mask.row_runs = p.row_runs;
  mask.key_counts = p.key_counts, mask.key_runs = p.key_runs;
  if (batch * (rows + columns) == 0) return nullptr;
  const auto stream = static_cast<cudaStream_t>(device.stream);
  const dim3 grid(p.query_tiles + p.key_tiles, p.batch);
  tables_kernel<<<grid, kThreads, 0, stream>>>(p);
  constexpr int kWarps = kThreads / 32;
  const int64_t items = batch * p.lists * (rows + columns);
  runs_kernel<<<static_cast<unsigned>((items + kWarps - 1) / kWarps), kThreads, 0, stream>>>(p);
  return last_status();
}

}  // namespace weft::kernels
