// CUDA kernel of products of few rows with weights: pointers and sizes in elements; no torch.
#pragma once

#include <cstdint>

#include "ops/cuda/types.h"

namespace weft::kernels {

constexpr int kCudaLinearMaps = 6;  // with one x
constexpr int64_t kCudaLinearRows = 8;

// y [rows, count] = x [rows, width] weight' + bias; all of one 16-bit type.
struct CudaLinearMap {
  const void* weight = nullptr;  // [count, width]
  const void* bias = nullptr;    // [count]; null: none
  void* y = nullptr;
  int64_t count = 0;
};

struct CudaLinear {
  CudaType type = CudaType::bf16;
  int64_t rows = 0, width = 0;
  const void* x = nullptr;
  int maps = 0;
  CudaLinearMap map[kCudaLinearMaps];
  // Of two maps of one size: map[0].y is silu(x weight_0') (x weight_1').
  bool swiglu = false;
  int capability = 0;
};

struct LinearCuda {
  bool (*takes)(const CudaLinear& p);
  CudaStatus (*products)(const CudaLinear& p, void* stream);
};

const LinearCuda& linear_cuda();

}  // namespace weft::kernels
