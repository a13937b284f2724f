// CPU kernels of softmax attention: tiles of 64 queries and 64 keys, online softmax, masks from positions. No
// torch.
//
// The queries of all heads that read one key head form the rows of a matrix, R = H / G for each token: row t
// R + r is token t of the group's head r. They share the packed keys, and a single token of many heads still
// fills a tile.
#pragma once

#include <cstdint>

#include "ops/simd/isa.h"

namespace weft::kernels {

inline constexpr int64_t kQueryBlock = 64;
inline constexpr int64_t kKeyBlock = 64;

// What is known of a block of keys as a whole. Minima and maxima are over the slots that are not empty.
struct KeyRange {
  int32_t first_position, last_position;
  int32_t first_segment, last_segment;
  int32_t first_phase, last_phase;  // of the stripes
  int32_t empty_slots;              // of kKeyBlock, those past the last key included
};

// Floats, with the last dimension contiguous; strides in elements.
struct Heads {
  const float* data = nullptr;
  int64_t batch = 0, token = 0, head = 0;
};

enum class Element : int8_t { fp32, bf16, fp16, int8 };

// Keys or values. With int8 an entry is worth that times the scale of its run of `group` entries.
struct KeyRows {
  Element type = Element::fp32;
  const void* data = nullptr;
  int64_t batch = 0, token = 0, head = 0;
  const float* scale = nullptr;  // [B, S, G, width / group], contiguous in the last dimension
  int64_t scale_batch = 0, scale_token = 0, scale_head = 0, group = 0;
};

// A query sees the key slots of its segment that satisfy one of
//   low < position <= high      position < prefix (sinks are in it)
//   stripe: position <= high and phase == (stride - 1 - offset of the head) mod stride
//   tree: bit position - tree_begin
struct AttentionProblem {
  int64_t batch = 0, queries = 0, keys = 0, heads = 0, key_heads = 0, key_width = 0, value_width = 0;
  float scale = 1;
  float softcap = 0;  // 0: none
  Heads q;
  KeyRows k, v;                     // of one type
  const int32_t* q_high = nullptr;  // [B, T], like the next four
  const int32_t* q_low = nullptr;
  const int32_t* q_segment = nullptr;
  const int32_t* q_prefix = nullptr;
  const int32_t* q_position = nullptr;  // for slopes
  const int32_t* k_position = nullptr;  // [B, blocks, 64], -1 for an empty slot
  const int32_t* k_segment = nullptr;   // [B, blocks, 64]
  const int32_t* k_phase = nullptr;     // [B, blocks, 64], (position / block) mod stride; null: no stripes
  const int32_t* head_phase = nullptr;  // [H], the phase that a head sees
  const KeyRange* ranges = nullptr;     // [B, blocks]
  const int64_t* q_tree = nullptr;      // [B, T, tree_words]; null: no tree
  const int64_t* tree_begin = nullptr;  // [B]
  int64_t tree_words = 0;
  const float* slopes = nullptr;  // [H] or null
  float* packed_k =
      nullptr;  // [B, G, blocks, K, 64] transposed, zeros past the end; null: few rows, no packing
  float* packed_v = nullptr;  // [B, G, blocks, V, 64], backward only
  float* wide_v =
      nullptr;           // [B, G, blocks, 64, V] values that are not fp32, as floats; null: widened when used
  float* out = nullptr;  // [B, T, H, V]
  float* lse = nullptr;  // [B, T, H]
  const float* dout = nullptr;   // [B, T, H, V]; from here backward only
  const float* delta = nullptr;  // [B, T, H], sum(dout out) - dlse
  float* dq = nullptr;           // [B, G, T R, K] in row order, not yet scaled; zeros before
  float* dk = nullptr;           // [B, S, G, K]; null, like dv: not wanted
  float* dv = nullptr;           // [B, S, G, V]
  float* dslopes = nullptr;      // [B, T, H], zeros before; null: not wanted

  int64_t group() const { return heads / key_heads; }
  int64_t rows() const { return queries * group(); }
  int64_t row_blocks() const { return (rows() + kQueryBlock - 1) / kQueryBlock; }
  int64_t key_blocks() const { return (keys + kKeyBlock - 1) / kKeyBlock; }
};

// Floats of scratch that one caller of the functions below needs.
int64_t attention_scratch(const AttentionProblem& p);

// Packs keys, and values if packed_v or wide_v is set: items of [0, B G key_blocks).
void attention_pack(simd::Isa isa, const AttentionProblem& p, int64_t begin, int64_t end);

// out and lse: items of [0, B G row_blocks).
void attention_forward(simd::Isa isa, const AttentionProblem& p, float* scratch, int64_t begin, int64_t end);

// Few rows against many keys: the keys are split into ranges of kSplitBlocks blocks, whatever the number of threads.
inline constexpr int64_t kDecodeRows = 16;  // at most, rows of a key head
inline constexpr int64_t kSplitBlocks = 8;
inline int64_t attention_splits(const AttentionProblem& p) {
  return (p.key_blocks() + kSplitBlocks - 1) / kSplitBlocks;
}
int64_t attention_decode_scratch(const AttentionProblem& p);  // floats, as attention_scratch
int64_t attention_partial_size(const AttentionProblem& p);    // floats of `partial`, for all items
// Partial results of a split for each key head: items of [0, B splits) into `partial` [B, splits, G], in each out
// [rows, V] not yet divided, the largest scores [rows] and the sums of exponentials [rows].
void attention_decode(simd::Isa isa, const AttentionProblem& p, float* scratch, float* partial, int64_t begin,
                      int64_t end);
// out and lse from them, splits in order: items of [0, B G).
void attention_decode_merge(simd::Isa isa, const AttentionProblem& p, const float* partial, int64_t begin,
                            int64_t end);

// Adds the tiles that attention_forward would visit to `visited`.
void attention_count_tiles(simd::Isa isa, const AttentionProblem& p, int64_t* visited);

// delta[row] = sum(dout out) - dlse for rows of [0, B T H); out and dout in [row, V].
void attention_delta(simd::Isa isa, const float* out, const float* dout, const float* dlse, int64_t width,
                     float* delta, int64_t begin, int64_t end);

// dq alone: items of [0, B G row_blocks).
void attention_backward_queries(simd::Isa isa, const AttentionProblem& p, float* scratch, int64_t begin,
                                int64_t end);

// dk and dv: items of [0, B G key_blocks).
void attention_backward_keys(simd::Isa isa, const AttentionProblem& p, float* scratch, int64_t begin,
                             int64_t end);

// dq, dk and dv with the probabilities computed once: items of [0, B G). The same bits as the two above.
void attention_backward_all(simd::Isa isa, const AttentionProblem& p, float* scratch, int64_t begin,
                            int64_t end);

}  // namespace weft::kernels
