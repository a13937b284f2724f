// Decoding with a state that is only read. The newest tokens' updates stay apart in a ring, as the few rows that
// they are, so that a token moves half the memory of linear_attention_step and an update can be taken back:
// tokens that a speculative decoder rejects are undone by shortening a length.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/linear_attention/linear_attention.h"

namespace weft::ops {

// Entry e of a sequence is its e-th token since `state`. N is the capacity, R the rows that a token writes: 2
// with a low rank erase (b with what a recalled, k with w v), else 1 (k with what it writes).
struct LinearAttentionRing {
  at::Tensor state;         // [B, H, K, V] contiguous fp32 (fp64 for fp64): before entry 0
  at::Tensor length;        // [B] int64 on the device of the state: entries in use
  at::Tensor keys, values;  // [B, H, N, R, K] and [B, H, N, R, V], in the type of the state
  at::Tensor
      decays;  // [B, H, N, W] factors exp(g): W is 0 without decay, 1 for constant and scalar, K for vector
  int64_t keep = 0;  // newest entries that a full ring leaves unfolded, so that they can be taken back
};

// An empty ring for tokens of the form of `in`: its gates say which decay and erase, its sizes B, H, K and V.
// Its initial_state becomes the ring's (shared, not copied), or zeros if it has none.
LinearAttentionRing linear_attention_ring(const LinearAttention& in, int64_t capacity = 16);

// One token: what linear_attention_step returns as y, [B, 1, H, V]. Takes all its forms; in.initial_state must be
// undefined. A sequence whose ring is full first folds all but `keep` entries; one that starts a document drops
// its ring and state. Same error bounds as the step. Not differentiable.
at::Tensor linear_attention_ring_step(const LinearAttention& in, LinearAttentionRing& ring);

// Takes the newest entries back: length [B] int64, each from 0 to what the ring has (on a GPU, where nobody looks, what
// is more or less than that becomes that).
void linear_attention_ring_roll_back(LinearAttentionRing& ring, const at::Tensor& length);

// The entries into the state; the ring is empty then.
void linear_attention_ring_fold(LinearAttentionRing& ring);

namespace reference {
at::Tensor linear_attention_ring_step(const LinearAttention& in, LinearAttentionRing& ring);
void linear_attention_ring_fold(LinearAttentionRing& ring);
}  // namespace reference

}  // namespace weft::ops
