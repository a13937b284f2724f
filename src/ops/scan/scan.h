// Diagonal linear recurrences: h_t = a_t * h_{t-1} + b_t.
// `scan`: real or complex, one state a channel (HGRN, RG-LRU, minGRU, EMA; S4D, S5, LRU).
// `matrix_scan`: a pair of states a channel and a 2 x 2 matrix for each token (Newton steps of ParaRNN,
// Danieli et al. 2025, arXiv:2510.21450).
// `selective_scan`: N states a channel with token-dependent step size, input and output maps; Gu and Dao
// 2023, arXiv:2312.00752 (Mamba).
//
// B batch, T tokens, E channels, N states of a channel.
#pragma once

#include <ATen/core/Tensor.h>

namespace weft::ops {

struct ScanResult {
  at::Tensor h;      // [B, T, E] in the type of b
  at::Tensor state;  // [B, E] h after the last token, fp32 / fp64 / complex64 / complex128
};

//   a        [B, T, E] or [E] (the same at every token), real or complex
//   b        [B, T, E] any float type, or complex
//   initial  [B, E]; undefined: zeros
//   starts   [B, T] bool, true where a document begins; undefined: none
// Complex results when a or b is complex. Differentiable in a, b, initial. T may be 0.
// Error against fp64 relative to max|h|: fp32 and complex64 1e-5, bf16 and fp16 2e-2.
ScanResult scan(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial = {},
                const at::Tensor& starts = {});

// One token for decoding, in place: b is [B, 1, E], a that or [E], and `state` [B, E] (contiguous, in the type
// that ScanResult::state has) becomes a * state + b. Returns h [B, 1, E]. Not differentiable.
at::Tensor scan_step(const at::Tensor& a, const at::Tensor& b, const at::Tensor& state);

// h_t = A_t h_{t-1} + b_t with a 2 x 2 matrix A_t and a pair of states for each channel, real numbers.
//   a        [B, T, 2, 2, E]: a[.., i, j, e] is row i, column j of channel e
//   b        [B, T, 2, E]
//   initial  [B, 2, E]; undefined: zeros
//   starts   [B, T] bool; undefined: none
// h is [B, T, 2, E] and the state [B, 2, E]. Types, gradients and bounds as for scan.
ScanResult matrix_scan(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial = {},
                       const at::Tensor& starts = {});

// One token in place, as scan_step: a [B, 1, 2, 2, E], b [B, 1, 2, E], state [B, 2, E].
at::Tensor matrix_scan_step(const at::Tensor& a, const at::Tensor& b, const at::Tensor& state);

struct SelectiveScan {
  at::Tensor u;                   // [B, T, E] any float type: the input
  at::Tensor delta;               // [B, T, E] > 0: the step size, after softplus
  at::Tensor a;                   // [E, N] < 0, fp32 (fp64 for fp64)
  at::Tensor b, c;                // [B, T, N]: input and output maps, shared by all channels
  at::Tensor skip;                // [E] fp32: y += skip * u; undefined: none
  at::Tensor initial_state = {};  // [B, E, N] fp32 (fp64 for fp64); undefined: zeros
  at::Tensor starts = {};         // [B, T] bool, true where a document begins; undefined: none
};

struct SelectiveScanResult {
  at::Tensor y;      // [B, T, E] in the type of u
  at::Tensor state;  // [B, E, N] fp32 (fp64 for fp64)
};

//   h_t = exp(delta_t a) * h_{t-1} + (delta_t u_t) b_t,   y_t = h_t . c_t + skip * u_t
// Differentiable in everything but `starts`. T may be 0.
// Error against fp64 relative to max|y|: fp32 1e-5, bf16 and fp16 2e-2. Work: 9 B T E N flops and B T E N
// exponentials.
SelectiveScanResult selective_scan(const SelectiveScan& in);

// One token for decoding, in place: in.initial_state (contiguous fp32) becomes the new state. T must be 1.
SelectiveScanResult selective_scan_step(const SelectiveScan& in);

namespace reference {
ScanResult scan(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial,
                const at::Tensor& starts);
ScanResult matrix_scan(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial,
                       const at::Tensor& starts);
SelectiveScanResult selective_scan(const SelectiveScan& in);
}  // namespace reference

}  // namespace weft::ops
