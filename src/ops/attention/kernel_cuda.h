// CUDA kernels of softmax attention; no torch, no CUDA headers. Letters as in attention.h, R = H / G.
#pragma once

#include <cstdint>

#include "ops/cuda/types.h"

namespace weft::kernels {

// The mask is looked at in tiles of so many queries and so many key slots.
inline constexpr int kMaskTile = 128;
inline int mask_tiles(int64_t count) { return static_cast<int>((count + kMaskTile - 1) / kMaskTile); }

// Mask as the op is given it: contiguous int64 tensors in device memory, null where there is none.
struct AttentionMaskInput {
  bool causal = true;
  int64_t window = 0, sinks = 0;
  const int64_t* q_positions = nullptr;  // [B, T], like q_segments and q_prefix
  const int64_t* k_positions = nullptr;  // [B, S], like k_segments
  const int64_t* q_segments = nullptr;
  const int64_t* k_segments = nullptr;
  const int64_t* q_range = nullptr;  // [B, T, 2]
  const int64_t* q_prefix = nullptr;
  const int64_t* q_tree = nullptr;      // [B, T, tree_words]
  const int64_t* tree_begin = nullptr;  // [B]
  int64_t tree_words = 0, stripe_block = 0, stripe_stride = 0;
  const int64_t* stripe_offsets = nullptr;  // [H]
};

// Neighbouring tiles of which the same is known, from begin / 2 to before end; begin is odd if all their pairs are seen.
struct TileRun {
  int32_t begin = 0, end = 0;
};

// The mask in 32 bits: a query sees the filled slots of its segment with first <= position < first + span or position
// < prefix, or by stripe or tree; nothing past the last query. And which tiles have something to see, as ascending runs.
// A row with more runs than there is room for has a last one that covers the rest, hidden tiles too. Lists are the same
// for all heads, or one for each where heads see different stripes. A mask without tensors is a rule: there are no tables,
// limits and runs are computed where they are needed.
struct AttentionMask {
  bool rule = false, causal = true;
  int window = 0, sinks = 0;            // of a rule; no window: 0
  const int32_t* limits = nullptr;      // [B, 128 query_tiles, 4]: first, span, prefix, segment
  const int32_t* positions = nullptr;   // [B, 128 query_tiles, 2]: of the query, and the end of its range
  const int32_t* slots = nullptr;       // [3, B, 128 key_tiles]: position (-1: empty), segment, phase
  const int32_t* row_counts = nullptr;  // [B, lists, query_tiles], of runs
  const TileRun* row_runs = nullptr;    // [B, lists, query_tiles, row_most]
  const int32_t* key_counts = nullptr;  // [B, lists, key_tiles]
  const TileRun* key_runs = nullptr;    // [B, lists, key_tiles, key_most]
  const int64_t* q_tree = nullptr;
  const int64_t* tree_begin = nullptr;
  const int64_t* stripe_offsets = nullptr;
  int64_t tree_words = 0;
  int stripe_stride = 0;  // 0: no stripes
  int lists = 1, query_tiles = 0, key_tiles = 0, row_most = 0, key_most = 0;
  int batch = 0, queries = 0, keys = 0;
  bool segments = false;
};

// Numbers of int32 that the tables need, proportional to queries + keys (under stripes also to their product, divided by
// tiles and by the distance of stripes); which tables they are is set by attention_mask_tables.
int64_t attention_mask_size(const AttentionMaskInput& in, int64_t batch, int64_t queries, int64_t keys,
                            int64_t heads);

// Rows [B, N, heads, width] of any type; with a scale the entries are int8 (and type means nothing).
struct AttentionRows : CudaRows {
  const float* scale = nullptr;  // [B, S, G, width / group], contiguous in the last dimension
  int64_t scale_batch = 0, scale_token = 0, scale_head = 0;
  int group = 0;
};

// A contiguous result [B, N, heads, width].
struct AttentionOut {
  void* data = nullptr;
  CudaType type = CudaType::fp32;
};

struct AttentionCuda {
  int batch = 0, queries = 0, keys = 0, heads = 0, key_heads = 0, key_width = 0, value_width = 0;
  float scale = 1, softcap = 0;
  const float* slopes = nullptr;  // [H]
  AttentionRows q, k, v;
  AttentionMask mask;
  AttentionOut out;
  float* lse = nullptr;  // [B, T, H]

  // Backward. Row statistics are [B, H, 128 query_tiles]: log-sum-exp in base 2, +inf where nothing is seen and past
  // the end; and delta = sum(dout out) - dlse.
  AttentionRows dout;
  float* lse2 = nullptr;
  float* delta = nullptr;
  const float* dlse = nullptr;  // [B, T, H]; null: zeros
  AttentionOut dq, dk, dv;      // null data: not wanted
  float* dslopes = nullptr;     // [B, T, H], the part of each row; null: not wanted

  constexpr int group() const { return heads / key_heads; }
};

// What the device allows.
struct AttentionDevice {
  int capability = 0, multiprocessors = 0;
  void* stream = nullptr;
};

struct AttentionCudaTable {
  int64_t (*mask_size)(const AttentionMaskInput& in, int64_t batch, int64_t queries, int64_t keys,
                       int64_t heads);
  // Fills the tables, mask_size numbers, and points `mask` to them.
  CudaStatus (*mask_tables)(const AttentionMaskInput& in, const AttentionCuda& p, int32_t* tables,
                            AttentionMask& mask, const AttentionDevice& device);
  CudaStatus (*forward)(const AttentionCuda& p, const AttentionDevice& device);
  // Few queries: floats of scratch that the split keys need, 0 where the other forward is to be used.
  int64_t (*decode_scratch)(const AttentionCuda& p, const AttentionDevice& device);
  CudaStatus (*decode)(const AttentionCuda& p, float* scratch, const AttentionDevice& device);
  CudaStatus (*backward)(const AttentionCuda& p, const AttentionDevice& device);
};

CudaStatus attention_mask_tables(const AttentionMaskInput& in, const AttentionCuda& p, int32_t* tables,
                                 AttentionMask& mask, const AttentionDevice& device);
int64_t attention_decode_scratch(const AttentionCuda& p, const AttentionDevice& device);
CudaStatus attention_decode(const AttentionCuda& p, float* scratch, const AttentionDevice& device);

// lse2 and delta for the backward kernels, from out, dout, lse and dlse.
CudaStatus attention_statistics(const AttentionCuda& p, void* stream);

// Any types and widths, products in fp32.
CudaStatus attention_forward_plain(const AttentionCuda& p, void* stream);
CudaStatus attention_backward_plain(const AttentionCuda& p, void* stream);

// q, k, v, dout and results of one 16-bit type; widths up to 256 that are multiples of 8; rows 16-byte aligned;
// scale > 0. The plain kernels where a block cannot have the shared memory.
CudaStatus attention_forward_mma(const AttentionCuda& p, void* stream);
CudaStatus attention_backward_mma(const AttentionCuda& p, void* stream);

// Of those, on Hopper, what has some keys and neither softcap nor slopes.
CudaStatus attention_forward_sm90(const AttentionCuda& p, const AttentionDevice& device);
CudaStatus attention_backward_sm90(const AttentionCuda& p, const AttentionDevice& device);

const AttentionCudaTable& attention_cuda_table();

}  // namespace weft::kernels
