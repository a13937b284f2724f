// CPU kernels of the short causal convolution: pointers, sizes and strides in elements; no torch.
#pragma once

#include <cstdint>

#include "ops/simd/float_type.h"
#include "ops/simd/isa.h"

namespace weft::kernels {

// Tokens that are computed together, and rows of the ring that holds the inputs that they see.
constexpr int64_t kShortConvGroup = 4;
constexpr int64_t short_conv_ring(int64_t width) {
  int64_t rows = 8;
  while (rows < width - 1 + kShortConvGroup) rows *= 2;
  return rows;
}

// Channels of a task: as many as leave a ring in half of the first-level cache.
constexpr int64_t short_conv_block(int64_t width) { return 4096 / short_conv_ring(width); }

// Channels last. Letters as in conv.h. The tokens of a sequence are cut into tiles, channels into blocks; a task
// is one block of one tile.
struct ShortConvProblem {
  int64_t batch = 0, tokens = 0, channels = 0, width = 0;
  int64_t tile = 0;  // tokens of a tile
  bool silu = false;
  simd::FloatType type = simd::FloatType::fp32;  // of x, y, dy, dx
  const void* x = nullptr;                       // [B, T, C], rows contiguous
  int64_t x_batch = 0, x_token = 0;
  const float* weight = nullptr;    // [C, W]
  const float* bias = nullptr;      // [C] or null
  const float* before = nullptr;    // [B, W - 1, C] or null for zeros
  const uint8_t* starts = nullptr;  // [B, T] or null
  void* y = nullptr;                // [B, T, C]
  // Backward: dy in, gradients out; null outputs are not wanted.
  const void* dy = nullptr;  // [B, T, C]
  void* dx = nullptr;        // [B, T, C]
  float* dbefore = nullptr;  // [B, W - 1, C]
  float* dtaps =
      nullptr;  // [B * tiles, W + 1, C]: each tile's share of the gradients of taps and, last, bias
  // Step: the inputs before x, moved on by one token.
  void* state = nullptr;  // [B, W - 1, C]

  int64_t tiles() const { return (tokens + tile - 1) / tile; }
  int64_t blocks() const { return (channels + short_conv_block(width) - 1) / short_conv_block(width); }
  int64_t tasks() const { return batch * tiles() * blocks(); }
  int64_t step_tasks() const { return batch * blocks(); }
};

// For the tasks [begin, end): task = (b * tiles + tile) * blocks + block.
void short_conv_forward(simd::Isa isa, const ShortConvProblem& p, int64_t begin, int64_t end);
void short_conv_backward(simd::Isa isa, const ShortConvProblem& p, int64_t begin, int64_t end);
// One token a sequence: reads x, weight, bias and state; writes y and state. Task = b * blocks + block.
void short_conv_step(simd::Isa isa, const ShortConvProblem& p, int64_t begin, int64_t end);

}  // namespace weft::kernels
