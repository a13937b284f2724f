// CUDA kernels of products with an activation: pointers and sizes in elements; no torch.
#pragma once

#include <cstdint>

#include "ops/cuda/types.h"

namespace weft::kernels {

// y = silu(gate) x. Rows of gate and x are contiguous and `..._row` apart; all else is contiguous. One type.
struct CudaSiluMul {
  int64_t rows = 0, width = 0;
  CudaType type = CudaType::fp32;
  const void* gate = nullptr;
  int64_t gate_row = 0;
  const void* x = nullptr;
  int64_t x_row = 0;
  void* y = nullptr;
  const void* dy = nullptr;  // backward: in, and the gradients out
  void* dgate = nullptr;
  void* dx = nullptr;
};

struct ActivationCuda {
  CudaStatus (*silu_mul_forward)(const CudaSiluMul& p, void* stream);
  CudaStatus (*silu_mul_backward)(const CudaSiluMul& p, void* stream);
};

const ActivationCuda& activation_cuda();

}  // namespace weft::kernels
