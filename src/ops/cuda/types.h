// What CUDA kernels of all families are told about tensors; no torch, no CUDA.
#pragma once

#include <cstdint>

namespace weft::kernels {

enum class CudaType : int32_t { fp32, bf16, fp16 };

// Where the rows of a [B, T, H, width] (or, width 1, [B, T, H]) tensor lie, strides in elements; rows themselves are
// contiguous. Null data: absent.
struct CudaRows {
  const void* data = nullptr;
  CudaType type = CudaType::fp32;
  int64_t batch = 0, token = 0, head = 0;
};

// Launch functions return null, or a text that says what failed and lives as long as the library.
using CudaStatus = const char*;

}  // namespace weft::kernels
