// CPU kernels of the linear attention family: pointers, sizes and strides in elements; no torch.
#pragma once

#include <cstdint>

#include "ops/simd/isa.h"

namespace weft::kernels {

enum class Decay { none, scalar, vector };  // a constant is a scalar whose strides over batch and token are 0

// Where the rows of a [B, T, H, width] (or, width 1, [B, T, H]) tensor lie; rows themselves are contiguous.
struct HeadRows {
  const float* data = nullptr;
  int64_t batch = 0, token = 0, head = 0;
  const float* at(int64_t b, int64_t t, int64_t h) const { return data + b * batch + t * token + h * head; }
};

// All of fp32. Letters as in linear_attention.h. The kernels work on chunks of at most `chunk` tokens that
// never cross a document start; the caller lists them for every sequence of the batch.
struct LinearAttentionProblem {
  int64_t batch = 0, tokens = 0, heads = 0, key_heads = 0, key_width = 0, value_width = 0;
  int64_t chunk = 0;
  float scale = 1;
  HeadRows q, k, v;
  Decay decay = Decay::none;
  HeadRows log_decay, beta, write;       // data null: absent
  const float* bonus = nullptr;          // [H, K] or null
  const float* initial_state = nullptr;  // [B, H, K, V] or null for zeros
  // First token of every chunk: sequence b has those from chunk_offset[b] on, its list closed by one that is
  // T.
  const int64_t *chunk_begin = nullptr, *chunk_offset = nullptr;
  const uint8_t* fresh = nullptr;  // as chunk_begin: 1 where a document starts, the state before is dropped
  // Out.
  float* y = nullptr;       // [B, T, H, V]; null: not wanted
  float* state = nullptr;   // [B, H, K, V]
  float* states = nullptr;  // [chunks of all sequences, H, K, V] what each starts from; null: not wanted
  float* values =
      nullptr;  // [B, T, H, V] what is written after the erase; null: not wanted, or nothing is erased
};

// Gradients; a null output is not wanted. dq and dk are for value heads: the caller sums those that share a
// key head.
struct LinearAttentionGradients {
  const float* dy = nullptr;                  // [B, T, H, V]
  const float* dstate = nullptr;              // [B, H, K, V] or null for zeros
  float *dq = nullptr, *dk = nullptr;         // [B, T, H, K]
  float* dv = nullptr;                        // [B, T, H, V]
  float* dlog_decay = nullptr;                // [B, T, H] or [B, T, H, K]
  float *dbeta = nullptr, *dwrite = nullptr;  // [B, T, H]
  float* dbonus = nullptr;                    // [B, H, K]
  float* dinitial = nullptr;                  // [B, H, K, V]
};

// Floats of scratch that one thread needs.
int64_t linear_attention_scratch(const LinearAttentionProblem& p);

// Forward and backward for the tasks [begin, end) of batch * heads: task = b * heads + h. The backward reads
// p.states and, with erase, p.values; p.state is not touched.
void linear_attention_forward(simd::Isa isa, const LinearAttentionProblem& p, float* scratch, int64_t begin,
                              int64_t end);
void linear_attention_backward(simd::Isa isa, const LinearAttentionProblem& p,
                               const LinearAttentionGradients& g, float* scratch, int64_t begin, int64_t end);

// One token: reads and writes p.state in place, writes p.y; p.fresh, if given, has one entry for every
// sequence. No chunks, no initial state; `decays` is scratch for K floats. Same tasks.
void linear_attention_step(simd::Isa isa, const LinearAttentionProblem& p, float* decays, int64_t begin,
                           int64_t end);

}  // namespace weft::kernels
