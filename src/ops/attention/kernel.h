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
  int32_t empty_slots;  // of kKeyBlock, those past the last key included
};

// Floats, with the last dimension contiguous; strides in elements.
struct Heads {
  const float* data = nullptr;
  int64_t batch = 0, token = 0, head = 0;
};

// A query sees the key slots with its segment and low < position <= high; `sinks` lowers `low` for the first
// positions.
struct AttentionProblem {
  int64_t batch = 0, queries = 0, keys = 0, heads = 0, key_heads = 0, key_width = 0, value_width = 0;
  float scale = 1;
  Heads q, k, v;
  const int32_t* q_high = nullptr;      // [B, T]
  const int32_t* q_low = nullptr;       // [B, T]
  const int32_t* q_segment = nullptr;   // [B, T]
  const int32_t* k_position = nullptr;  // [B, blocks, 64], -1 for an empty slot
  const int32_t* k_segment = nullptr;   // [B, blocks, 64]
  const KeyRange* ranges = nullptr;     // [B, blocks]
  int32_t sinks = 0;
  float* packed_k =
      nullptr;  // [B, G, blocks, K, 64] transposed, zeros past the end; null: few rows, no packing
  float* packed_v = nullptr;     // [B, G, blocks, V, 64], backward only
  float* out = nullptr;          // [B, T, H, V]
  float* lse = nullptr;          // [B, T, H]
  const float* dout = nullptr;   // [B, T, H, V]; from here backward only
  const float* delta = nullptr;  // [B, T, H], sum(dout out) - dlse
  float* dq = nullptr;           // [B, G, T R, K] in row order, not yet scaled; zeros before
  float* dk = nullptr;           // [B, S, G, K]
  float* dv = nullptr;           // [B, S, G, V]

  int64_t group() const { return heads / key_heads; }
  int64_t rows() const { return queries * group(); }
  int64_t row_blocks() const { return (rows() + kQueryBlock - 1) / kQueryBlock; }
  int64_t key_blocks() const { return (keys + kKeyBlock - 1) / kKeyBlock; }
};

// Floats of scratch that one caller of the functions below needs.
int64_t attention_scratch(const AttentionProblem& p);

// Packs keys, and values if packed_v is set: items of [0, B G key_blocks).
void attention_pack(simd::Isa isa, const AttentionProblem& p, int64_t begin, int64_t end);

// out and lse: items of [0, B G row_blocks).
void attention_forward(simd::Isa isa, const AttentionProblem& p, float* scratch, int64_t begin, int64_t end);

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
