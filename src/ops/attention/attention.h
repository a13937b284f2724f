// Softmax attention with grouped queries and a mask program that is never materialised.
// Vaswani et al. 2017, arXiv:1706.03762; online softmax and log-sum-exp: Dao et al. 2022, arXiv:2205.14135;
// attention sinks: Xiao et al. 2023, arXiv:2309.17453.
//
// B batch, T queries, S keys, H query heads, G key heads (H is a multiple of G; query head h reads key head h
// / (H/G)), K and V the widths of a key and a value head.
#pragma once

#include <ATen/core/Tensor.h>

namespace weft::ops {

// Which keys a query sees. A key is visible when every condition that is switched on holds:
//   slot       k_positions >= 0 (-1 marks an empty cache slot)
//   segment    q_segments == k_segments
//   causal     k_position <= q_position
//   window     k_position > q_position - window, or k_position < sinks
// Positions are those inside the document, so packed documents have positions that start again at 0. Keys may
// stand in any order (a ring of slots is fine).
struct Mask {
  bool causal = true;
  int64_t window = 0;           // 0: no window; w: the w most recent positions, the query's own included
  int64_t sinks = 0;            // the first positions of a document that stay visible outside the window
  at::Tensor q_positions = {};  // [B, T] int64; undefined: S - T .. S - 1
  at::Tensor k_positions = {};  // [B, S] int64; undefined: 0 .. S - 1
  at::Tensor q_segments = {};   // [B, T] int64; undefined, like k_segments: one segment
  at::Tensor k_segments = {};   // [B, S] int64
};

struct AttentionResult {
  at::Tensor out;  // [B, T, H, V] in the type of v; 0 where a query sees no key
  at::Tensor
      lse;  // [B, T, H] fp32 (fp64 for fp64), log of the sum of exp(scale q.k); -inf where no key is seen
};

// out = softmax(scale q k' + mask) v.
//   q [B, T, H, K], k [B, S, G, K], v [B, S, G, V], any float type, last dimension contiguous or made so
//   scale 0 means 1 / sqrt(K).
// S may be 0. Differentiable in q, k, v through both results (second derivatives:
// WEFT_KERNEL=reference). Keys and values in hidden slots must be finite: they are multiplied by 0.
// Error against fp64 relative to max|out|: fp32 1e-5, bf16 and fp16 2e-2. Work: 2 B H (K + V) flops a visible
// pair.
AttentionResult attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Mask& mask,
                          double scale = 0);

// Two partial results over disjoint sets of keys become the result over their union (ring attention, prefix +
// tail).
AttentionResult merge_attention(const AttentionResult& a, const AttentionResult& b);

namespace reference {
AttentionResult attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Mask& mask,
                          double scale);
}

}  // namespace weft::ops
