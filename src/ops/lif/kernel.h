// CPU kernels of leaky integrate-and-fire neurons, over contiguous fp32.
#pragma once

#include <cstdint>

#include "ops/simd/isa.h"

namespace weft::kernels {

struct LifProblem {
  int64_t tokens = 0, channels = 0;
  float leak = 0.5f, threshold = 1, alpha = 4;  // leak = 1 / tau
  const float* x = nullptr;                     // [B, T, E]
  const float* initial = nullptr;               // [B, E]
  const bool* starts = nullptr;                 // [B, T]; null: none
  float* charged = nullptr;                     // [B, T, E] v' of every token; null: not wanted
  float* spikes = nullptr;                      // [B, T, E]
  float* state = nullptr;                       // [B, E]
};

struct LifGradient {
  const float *charged = nullptr, *dspikes = nullptr;  // [B, T, E]
  const float* dstate = nullptr;                       // [B, E]
  float* dx = nullptr;                                 // [B, T, E]
  float* dinitial = nullptr;                           // [B, E]
};

// Rows [begin, end) of the batch.
void lif_forward(simd::Isa isa, const LifProblem& p, int64_t begin, int64_t end);
void lif_backward(simd::Isa isa, const LifProblem& p, const LifGradient& g, int64_t begin, int64_t end);

}  // namespace weft::kernels
