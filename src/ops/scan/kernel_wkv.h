// Kernels of the RWKV-4 recurrence. Layouts as in wkv.h, all tensors contiguous fp32.
#pragma once

#include "ops/scan/kernel.h"

namespace weft::kernels {

struct WkvProblem {
  int64_t batch = 0, tokens = 0, channels = 0;
  const float* k = nullptr;        // [B, T, E]
  const float* v = nullptr;        // [B, T, E]
  const float* w = nullptr;        // [E]
  const float* u = nullptr;        // [E]
  const float* initial = nullptr;  // [B, 3, E] or null: nothing seen
  const bool* starts = nullptr;    // [B, T] or null
  float* y = nullptr;              // [B, T, E]
  float* state = nullptr;          // [B, 3, E]
  float* saved = nullptr;          // [B, T, 3, E] state before each token; null: not kept
};

struct WkvGradient {
  WkvProblem forward;             // with saved, y and state of the forward pass
  const float* dy = nullptr;      // [B, T, E]
  const float* dstate = nullptr;  // [B, 3, E]
  float* dk = nullptr;            // [B, T, E]
  float* dv = nullptr;            // [B, T, E]
  float* dw = nullptr;            // [B, E]
  float* du = nullptr;            // [B, E]
  float* dinitial = nullptr;      // [B, 3, E]
};

// Tasks as in kernel.h: one sequence and one block of channels.
void wkv_forward(simd::Isa isa, const WkvProblem& p, int64_t begin, int64_t end);
void wkv_backward(simd::Isa isa, const WkvGradient& g, int64_t begin, int64_t end);

}  // namespace weft::kernels
