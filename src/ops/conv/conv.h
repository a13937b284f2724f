// Short causal depthwise convolution with state:
//   y[t, c] = act(bias[c] + sum_j weight[c, j] x[t - W + 1 + j, c])
//
// B batch, T tokens, C channels, W width (2 to 16).
#pragma once

#include <ATen/core/Tensor.h>

namespace weft::ops {

struct ShortConv {
  at::Tensor x;       // [B, T, C] any float type
  at::Tensor weight;  // [C, W]; weight[c, W - 1] multiplies the current token
  at::Tensor bias;    // [C]; undefined: none
  bool silu = false;  // y = silu(conv)
  // [B, W - 1, C] the inputs before x, oldest first, in the type of x; undefined: zeros
  at::Tensor initial_state;
  // [B, T] bool, true where a document begins: inputs before it count as 0; undefined: none
  at::Tensor starts;
};

struct ShortConvResult {
  at::Tensor y;  // [B, T, C] in the type of x
  // [B, W - 1, C] the last W - 1 inputs of the last document (0 where it is shorter), in the type of x
  at::Tensor state;
};

// Differentiable in x, weight, bias, initial_state. T may be 0.
// Error against fp64 relative to max|y|: fp32 1e-5, bf16 and fp16 2e-2. Work: 2 B T C W flops.
ShortConvResult short_conv(const ShortConv& in);

// One token for decoding, in place: in.initial_state, contiguous and in the type of x, moves on by x. T must be 1,
// starts undefined. Returns y [B, 1, C] in the type of x. Not differentiable. Error as above.
at::Tensor short_conv_step(const ShortConv& in);

namespace reference {
ShortConvResult short_conv(const ShortConv& in);
}

}  // namespace weft::ops
