// CPU kernels of the short causal convolution: pointers, sizes and strides in elements; no torch.
#pragma once

#include <cstdint>

#include "ops/simd/isa.h"

namespace weft::kernels {

// All of fp32, channels last. Letters as in conv.h. The tokens of a sequence are cut into tiles that are
// computed independently.
struct ShortConvProblem {
  int64_t batch = 0, tokens = 0, channels = 0, width = 0;
  int64_t tile = 0;  // tokens of a tile
  bool silu = false;
  const float* x = nullptr;  // [B, T, C], rows contiguous
  int64_t x_batch = 0, x_token = 0;
  const float* taps = nullptr;      // [W, C]: the weight transposed
  const float* bias = nullptr;      // [C] or null
  const float* before = nullptr;    // [B, W - 1, C] or null for zeros
  const uint8_t* starts = nullptr;  // [B, T] or null
  float* y = nullptr;               // [B, T, C]
  // Backward: dy in, gradients out; null outputs are not wanted.
  const float* dy = nullptr;  // [B, T, C]
  float* dx = nullptr;        // [B, T, C]
  float* dbefore = nullptr;   // [B, W - 1, C]
  float* dtaps = nullptr;     // [tasks, W + 1, C]: each task's share of the gradients of taps and, last, bias

  int64_t tiles() const { return (tokens + tile - 1) / tile; }
  int64_t tasks() const { return batch * tiles(); }
};

// For the tasks [begin, end): task = b * tiles + tile.
void short_conv_forward(simd::Isa isa, const ShortConvProblem& p, int64_t begin, int64_t end);
void short_conv_backward(simd::Isa isa, const ShortConvProblem& p, int64_t begin, int64_t end);

}  // namespace weft::kernels
