// The recurrence of RWKV-4: an average of all values so far, weighted by e^k and an exponential decay in time, in
// which the current token has a weight of its own. Peng et al. 2023, arXiv:2305.13048.
//   a_t = e^w a_{t-1} + e^{k_t} v_t;   b_t = e^w b_{t-1} + e^{k_t}
//   y_t = (a_{t-1} + e^{u + k_t} v_t) / (b_{t-1} + e^{u + k_t})
// Kept as (a, b) e^{-m} and m, the exponent of the largest term, so that k of any size does not overflow.
//
// B batch, T tokens, E channels.
#pragma once

#include <ATen/core/Tensor.h>

namespace weft::ops {

struct Wkv {
  at::Tensor k, v;           // [B, T, E] any float type, the same
  at::Tensor log_decay;      // [E] w <= 0, fp32 (fp64 for fp64)
  at::Tensor bonus;          // [E] u, fp32 (fp64 for fp64)
  at::Tensor initial_state;  // [B, 3, E] fp32 (fp64 for fp64): a e^{-m}, b e^{-m}, m; undefined: nothing seen
  at::Tensor starts;         // [B, T] bool, true where a document begins; undefined: none
};

struct WkvResult {
  at::Tensor y;      // [B, T, E] in the type of v
  at::Tensor state;  // [B, 3, E] fp32 (fp64 for fp64), after the last token
};

// m of a state that has seen nothing: (0, 0, kWkvNothing).
inline constexpr double kWkvNothing = -1e38;

// Differentiable in everything but `starts`. T may be 0.
// Error against fp64 relative to max|y|: fp32 1e-5, bf16 and fp16 2e-2.
WkvResult wkv(const Wkv& in);

namespace reference {
WkvResult wkv(const Wkv& in);
}

}  // namespace weft::ops
