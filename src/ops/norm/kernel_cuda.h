// CUDA kernels of the normalisations: pointers and sizes in elements; no torch.
#pragma once

#include <cstdint>

#include "ops/cuda/types.h"

namespace weft::kernels {

enum class CudaGating : int32_t { none, before, after };

constexpr int64_t kCudaNormWidth = 4096;  // widest row

// x [rows, width] and what is like it have rows that are contiguous and `..._row` apart; all else is contiguous. `type` is
// that of x, gate, y, sum, dy, dsum and of the gradients of x and gate.
struct CudaNorm {
  int64_t rows = 0, width = 0;
  CudaType type = CudaType::fp32;
  float eps = 0;
  bool centre = false;          // subtract the mean
  bool sum_of_squares = false;  // divide by the root of the sum of squares, not of their mean
  CudaGating gating = CudaGating::none;
  const void* x = nullptr;
  int64_t x_row = 0;
  const void* gate = nullptr;
  int64_t gate_row = 0;
  const void* added = nullptr;           // is added to x first; null: nothing
  CudaType added_type = CudaType::fp32;  // `type`, or a 16-bit one when that is fp32
  void* sum = nullptr;                   // x + added
  const void* weight = nullptr;
  CudaType weight_type = CudaType::fp32;
  const void* bias = nullptr;
  CudaType bias_type = CudaType::fp32;
  void* y = nullptr;
  int multiprocessors = 0, capability = 0;
};

// Null gradients are not computed.
struct CudaNormGradient {
  CudaNorm forward;
  const void* dy = nullptr;
  const void* dsum = nullptr;  // joins dx; or null
  void* dx = nullptr;
  void* dgate = nullptr;
  float* partial = nullptr;  // [2, norm_blocks(), width] scratch when dweight or dbias is wanted
  void* dweight = nullptr;
  void* dbias = nullptr;
};

struct NormCuda {
  CudaStatus (*forward)(const CudaNorm& p, void* stream);
  CudaStatus (*backward)(const CudaNormGradient& g, void* stream);
  int64_t (*blocks)(const CudaNorm& p);
};

const NormCuda& norm_cuda();

}  // namespace weft::kernels
