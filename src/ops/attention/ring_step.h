// A token of windowed attention behind its projections, for decoding: norms of q and k, rotary positions, attention over a
// ring of keys, and the token's own key and value into the ring, on Hopper in one kernel and a small one.
//
// Letters as in attention.h. Position p stands in column p of the ring while it is a sink, else in sinks + p mod the other
// columns, of which there are window - 1 (one at least).
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/rope/rope.h"

namespace weft::ops {

struct RingStep {
  at::Tensor q, k, v;    // [B, 1, H, K], [B, 1, G, K], [B, 1, G, V] in a float type
  at::Tensor positions;  // [B, 1] int64, not negative
  at::Tensor q_norm,
      k_norm;  // [K] in any float type, scales of RMS norms before the rotation; undefined: none
  double norm_eps = 1e-5;
  bool rotates = false;
  Rope rope;  // where it rotates
  int64_t window = 0, sinks = 0;
  double scale = 0, softcap = 0;  // as in AttentionOptions
  at::Tensor ring_k,
      ring_v;        // [B, L, G, K], [B, L, G, V] in the types of k and v, contiguous; changed in place
  at::Tensor slots;  // [B, L] int64 contiguous: the position that a column holds, or -1; in place
};

// The read-out [B, 1, H, V] in the type of q. Not differentiable. Bounds as attention. InputError for other shapes, types or
// devices than q's, and for L - sinks below window - 1.
at::Tensor attention_ring_step(const RingStep& in);

}  // namespace weft::ops
