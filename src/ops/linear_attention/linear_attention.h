// Linear attention with a matrix state:
//   S_t = A_t S_{t-1} + w_t k_t v_t',   y_t = scale S_t' q_t
// where A_t, the erase, is one of
//   none                         diag(exp(g_t))
//   delta rule                   (I - beta_t k_t k_t') diag(exp(g_t))   erases what k_t recalls of the decayed state
//   diagonal plus low rank       diag(exp(g_t)) + b_t a_t'              a_t reads the state before its decay
// The delta rule is the third with a = exp(g) k (elementwise) and b = -beta k. RWKV-7 has a = -kappa, b = kappa
// times its in-context learning rate, kappa of length one.
//
// One family for linear attention, RetNet, Mamba-2, GLA, HGRN-2, RWKV-6 (read before), DeltaNet, Gated
// DeltaNet, KDA and RWKV-7. Yang et al. 2023, arXiv:2312.06635 (gates, chunk form); Yang et al. 2024,
// arXiv:2406.06484 and arXiv:2412.06464 (delta rule); Dao and Gu 2024, arXiv:2405.21060 (Mamba-2); Peng et al.
// 2025, arXiv:2503.14456 (RWKV-7).
//
// B batch, T tokens, H value heads, G key heads (H is a multiple of G; value head h reads key head
// h / (H / G)), K and V the widths of a key and a value head.
#pragma once

#include <ATen/core/Tensor.h>

namespace weft::ops {

struct LinearAttention {
  at::Tensor q, k;  // [B, T, G, K] any float type
  at::Tensor v;     // [B, T, H, V] same type
  // Decay, natural log per token, <= 0, fp32 or the input type. Its shape is the axis:
  //   undefined none | [H] constant | [B, T, H] scalar | [B, T, H, K] vector (one for each key channel)
  at::Tensor log_decay;
  at::Tensor beta;  // [B, T, H]: the delta rule's erase strength, in [0, 2]; undefined: nothing is erased
  // a and b of a diagonal plus low rank erase: [B, T, G, K] or [B, T, H, K], both of one shape and of the type
  // of v. Given together; not with beta.
  at::Tensor erase_read, erase_write;
  at::Tensor write;  // [B, T, H]: write strength w; undefined: beta when that is given, else 1
  // [H, K]: given, the read is before the write: y_t = scale (S_{t-1} + diag(u) k_t v_t')' q_t, whatever w is
  at::Tensor bonus;
  double scale = 0;          // 0 means 1 / sqrt(K)
  at::Tensor initial_state;  // [B, H, K, V] fp32 (fp64 for fp64); undefined: zeros
  // [B, T] bool: true where a document begins, the state before it is dropped; undefined: none
  at::Tensor starts;
};

struct LinearAttentionResult {
  at::Tensor y;      // [B, T, H, V] in the type of v
  at::Tensor state;  // [B, H, K, V] fp32 (fp64 for fp64), after the last token
};

// Differentiable in every tensor but `starts`. With a bonus there is no erase. T may be 0.
// Error against fp64 relative to max|y|: fp32 1e-5, bf16 and fp16 2e-2 (of y; the state 1e-2).
// Work in step form: 8 B T H K V flops with a low rank erase, 6 with the delta rule, 4 without.
LinearAttentionResult linear_attention(const LinearAttention& in);

// One token for decoding, in place: in.initial_state (contiguous fp32, owned by the caller) becomes the new
// state and is also returned. T must be 1. Not differentiable.
LinearAttentionResult linear_attention_step(const LinearAttention& in);

// The tokens as an affine map of the state before them, for sequence parallelism and prefix caches:
// state after = factor * state before + offset. `matrix` (with erase): factor is [B, H, K, K] and multiplies
// from the left; else factor is [B, H, K, 1] and multiplies elementwise. Both fp32 (fp64 for fp64).
struct LinearAttentionSummary {
  at::Tensor factor, offset;
  bool matrix = false;
};
// q is not read; in.initial_state must be undefined. Differentiable.
LinearAttentionSummary linear_attention_summary(const LinearAttention& in);

namespace reference {
LinearAttentionResult linear_attention(const LinearAttention& in);
}

}  // namespace weft::ops
