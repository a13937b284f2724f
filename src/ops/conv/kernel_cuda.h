// CUDA kernels of the short causal convolution: pointers, sizes and strides in elements; no torch.
#pragma once

#include <cstdint>

#include "ops/cuda/types.h"

namespace weft::kernels {

// x and y: [B, T, C]; rows of x are contiguous, everything else is. W taps, 2 to 16.
struct CudaShortConv {
  int64_t batch = 0, tokens = 0, channels = 0, width = 0;
  bool silu = false;
  CudaType type = CudaType::fp32;  // of x, y, states and their gradients
  CudaType weight_type = CudaType::fp32, bias_type = CudaType::fp32;
  const void* x = nullptr;
  int64_t x_batch = 0, x_token = 0;
  const void* weight = nullptr;     // [C, W]
  const void* bias = nullptr;       // [C] or null
  const void* before = nullptr;     // [B, W - 1, C] or null
  const uint8_t* starts = nullptr;  // [B, T] or null
  void* y = nullptr;
  void* state = nullptr;  // [B, W - 1, C] or null; may be `before` when T is 1
};

// What is null is not computed.
struct CudaShortConvGradient {
  CudaShortConv forward;
  const void* dy = nullptr;      // [B, T, C]
  const void* dstate = nullptr;  // [B, W - 1, C] or null
  void* dx = nullptr;
  void* dbefore = nullptr;
  float* partial = nullptr;  // [short_conv_partials()][W + 1][C], scratch for the two that follow
  void* dweight = nullptr;   // in the type of weight
  void* dbias = nullptr;     // in the type of bias
};

struct ShortConvCuda {
  CudaStatus (*forward)(const CudaShortConv& p, void* stream);
  CudaStatus (*backward)(const CudaShortConvGradient& g, void* stream);
  int64_t (*partials)(const CudaShortConv& p);
};

const ShortConvCuda& short_conv_cuda();

}  // namespace weft::kernels
