// CUDA kernels of the recurrence of RWKV-4: pointers and sizes; no torch. Everything is contiguous.
#pragma once

#include <cstdint>

#include "ops/cuda/types.h"

namespace weft::kernels {

constexpr int kCudaWkvChunk = 8;  // tokens between the states that the forward pass saves

struct CudaWkv {
  int64_t batch = 0, tokens = 0, channels = 0;
  CudaType type = CudaType::fp32;   // of k, v, y and their gradients
  const void* k = nullptr;          // [B, T, E]
  const void* v = nullptr;          // [B, T, E]
  const float* w = nullptr;         // [E] log decay
  const float* u = nullptr;         // [E] bonus
  const float* initial = nullptr;   // [B, 3, E] or null
  const uint8_t* starts = nullptr;  // [B, T] or null
  void* y = nullptr;                // [B, T, E]
  float* state = nullptr;           // [B, 3, E]
  float* saved = nullptr;           // [B, chunks, 3, E] states before each chunk, or null
};

// In forward: the inputs, and `state` and `saved` as the forward pass left them.
struct CudaWkvGradient {
  CudaWkv forward;
  const void* dy = nullptr;
  const float* dstate = nullptr;  // [B, 3, E]
  void* dk = nullptr;
  void* dv = nullptr;
  float* dw = nullptr;        // [B, E], to be added up
  float* du = nullptr;        // [B, E], to be added up
  float* dinitial = nullptr;  // [B, 3, E]
};

struct WkvCuda {
  CudaStatus (*forward)(const CudaWkv& p, void* stream);
  CudaStatus (*backward)(const CudaWkvGradient& g, void* stream);
};

const WkvCuda& wkv_cuda();

}  // namespace weft::kernels
