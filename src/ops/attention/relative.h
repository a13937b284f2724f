// Softmax attention whose scores get a bias that each query draws from a bank of profiles over the distance to the key,
// as in Inkling (Thinking Machines 2026):
//   score(t, s) = scale q_t k_s + sum_r relative[t, r] profiles[r, p_t - p_s]      0 <= p_t - p_s < E, else no bias
#pragma once

#include "ops/attention/attention.h"

namespace weft::ops {

// q [B, T, H, K], k [B, S, G, K], v [B, S, G, V], relative [B, T, H, R], profiles [R, E], all of any float type; positions
// and mask as for attention, without stripes of their own for each head. In fp32 (fp64 for fp64), one block of queries
// after another: memory B H S for each of 128 queries. Differentiable in all tensors. Work: 2 B H (K + V) flops a pair of
// the block's queries and the keys that any of them sees, and 2 B T H R E for the profiles.
AttentionResult relative_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   const at::Tensor& relative, const at::Tensor& profiles, const Mask& mask,
                                   double scale = 0);

}  // namespace weft::ops
