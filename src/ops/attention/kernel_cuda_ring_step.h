// CUDA kernel of a token of windowed attention; no torch.
#pragma once

#include <cstdint>

#include "ops/cuda/types.h"

namespace weft::kernels {

// Letters and meaning as in ring_step.h; everything is contiguous.
struct CudaRingStep {
  int batch = 0, heads = 0, key_heads = 0, key_width = 0, value_width = 0, columns = 0;
  CudaType type = CudaType::fp32;  // of q, k, v, the ring and y
  const void *q = nullptr, *k = nullptr, *v = nullptr;
  const int64_t* positions = nullptr;
  const float *q_norm = nullptr, *k_norm = nullptr;
  float norm_eps = 0, scale = 1;
  int pairs = 0;  // that turn; 0: none
  const double* frequencies = nullptr;
  double log2_theta = 0, magnitude = 1;
  bool interleaved = false;
  int64_t window = 0, sinks = 0;
  void *ring_k = nullptr, *ring_v = nullptr;
  int64_t* slots = nullptr;
  void* y = nullptr;
  int multiprocessors = 0, capability = 0;
};

struct RingStepCuda {
  bool (*takes)(const CudaRingStep& p);
  CudaStatus (*step)(const CudaRingStep& p, void* stream);
};

const RingStepCuda& ring_step_cuda();

}  // namespace weft::kernels
