// CUDA kernel of the rotary embedding: pointers, sizes and strides in elements; no torch.
#pragma once

#include <cstdint>

#include "ops/cuda/types.h"

namespace weft::kernels {

constexpr int64_t kCudaRopePairs = 1024;  // most of a head

struct CudaRope {
  int64_t batch = 0, tokens = 0, heads = 0, width = 0, pairs = 0;
  CudaType type = CudaType::fp32;
  const int64_t* positions = nullptr;   // [B, T]
  const double* frequencies = nullptr;  // [pairs] or [B, T, pairs]; null: theta's
  int64_t frequency_stride = 0;         // 0, or pairs
  double log2_theta = 0;
  double magnitude = 1;
  bool interleaved = false, backwards = false;
  const void* x = nullptr;  // channels of a head are contiguous
  int64_t x_batch = 0, x_token = 0, x_head = 0;
  void* y = nullptr;  // contiguous
};

struct RopeCuda {
  CudaStatus (*turn)(const CudaRope& p, void* stream);
};

const RopeCuda& rope_cuda();

}  // namespace weft::kernels
