// CUDA kernel of a token of Gated DeltaNet between its projections; no torch.
#pragma once

#include <cstdint>

#include "ops/cuda/types.h"

namespace weft::kernels {

// Letters and meaning as in delta_step.h; strides in elements, everything else is contiguous.
struct CudaDeltaStep {
  int64_t batch = 0, key_heads = 0, heads = 0, key_width = 0, value_width = 0, taps = 0;
  CudaType type = CudaType::fp32;  // of x, conv_state, beta, decay, gate and y
  const void* x = nullptr;         // [B, C], C = 2 H K + U V
  const void* conv_weight = nullptr;
  CudaType conv_type = CudaType::fp32;
  void* conv_state = nullptr;
  const void *beta = nullptr, *decay = nullptr;  // [B, U]
  const float *a_log = nullptr, *dt_bias = nullptr;
  float beta_scale = 1, scale = 1, key_eps = 0, norm_eps = 0;
  float* state = nullptr;
  const float* norm_weight = nullptr;
  const void* gate = nullptr;  // [B, U V]; null: none
  void* y = nullptr;           // [B, U V]
  int multiprocessors = 0, capability = 0;

  constexpr int64_t channels() const { return 2 * key_heads * key_width + heads * value_width; }
};

struct DeltaStepCuda {
  bool (*takes)(const CudaDeltaStep& p);
  CudaStatus (*step)(const CudaDeltaStep& p, void* stream);
};

const DeltaStepCuda& delta_step_cuda();

}  // namespace weft::kernels
