// A token of Gated DeltaNet between its projections, for decoding: convolution, unit length, gates, state, norm and output
// gate, in one kernel on Hopper.
//   q, k, v = silu(conv(x));  q, k to unit length per head
//   S <- e^g (I - beta k k') S + beta k v',  beta = beta_scale sigmoid(b),  g = -exp(A_log) softplus(a + dt_bias)
//   y = rms_norm(S' q / sqrt(K)) * silu(gate)
//
// B batch, H key heads of width K, U value heads (a multiple of H) of width V, C = 2 H K + U V, W taps.
#pragma once

#include <ATen/core/Tensor.h>

namespace weft::ops {

struct DeltaStep {
  int64_t key_heads = 0;   // H
  at::Tensor x;            // [B, 1, C]: q, k and v side by side
  at::Tensor conv_weight;  // [C, W]
  at::Tensor conv_state;   // [B, W - 1, C] in the type of x, contiguous; moves on by x
  at::Tensor beta, decay;  // [B, 1, U]: b and a
  double beta_scale = 1;
  at::Tensor a_log, dt_bias;  // [U]
  double key_eps = 1e-6;      // of the squared length
  at::Tensor state;           // [B, U, K, V] contiguous, in fp32 (fp64 beside fp64); changed in place
  at::Tensor norm_weight;     // [V]
  double norm_eps = 1e-5;
  at::Tensor gate;  // [B, 1, U V]; undefined: none
};

// y [B, 1, U V] in the type of x. Not differentiable. Bounds as linear_attention. Tensors without a type here may have any float
// type. InputError for other shapes, or a device that is not that of x.
at::Tensor delta_step(const DeltaStep& in);

}  // namespace weft::ops
