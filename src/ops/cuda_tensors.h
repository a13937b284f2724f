// Tensors as CUDA kernels are told about them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "ops/cuda/types.h"

namespace weft {

inline kernels::CudaType cuda_type(const at::Tensor& x) {
  return x.scalar_type() == at::kBFloat16 ? kernels::CudaType::bf16
         : x.scalar_type() == at::kHalf   ? kernels::CudaType::fp16
                                          : kernels::CudaType::fp32;
}

// x itself when kernels can read its type, else in fp32; undefined stays so.
inline at::Tensor in_kernel_type(const at::Tensor& x) {
  const bool known = !x.defined() || x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16 ||
                     x.scalar_type() == at::kHalf;
  return known ? x : x.to(at::kFloat);
}

// Contiguous and at an address that 16-byte accesses may use.
inline at::Tensor aligned(const at::Tensor& x) {
  const auto dense = x.contiguous();
  return reinterpret_cast<uintptr_t>(dense.const_data_ptr()) % 16 == 0 ? dense : dense.clone();
}

// [.., .., .., width] whose rows kernels can load: contiguous, and on 16-byte boundaries wherever whole rows are multiples of
// 16 bytes. Others are copied; undefined tensors and those of fewer dimensions stay as they are.
inline at::Tensor loadable_rows(const at::Tensor& x) {
  if (!x.defined() || x.dim() < 4) return x;
  const auto bytes = [&](int64_t elements) { return elements * static_cast<int64_t>(x.element_size()); };
  bool fits = x.stride(3) == 1 || x.size(3) == 1;
  if (bytes(x.size(3)) % 16 == 0) {
    fits = fits && reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
    for (const int64_t d : {0, 1, 2}) fits = fits && bytes(x.stride(d)) % 16 == 0;
  }
  return fits ? x : x.clone(at::MemoryFormat::Contiguous);
}

// Elements between rows of the last dimension when they are evenly spaced and each is contiguous; else -1.
inline int64_t row_stride(const at::Tensor& x) {
  const int64_t width = x.size(-1);
  if (x.numel() == 0 || x.is_contiguous()) return width;
  if (x.stride(-1) != 1 && width != 1) return -1;
  int64_t row = -1, next = 0;  // next: the stride that a dimension must have to carry on
  for (int64_t i = x.dim() - 2; i >= 0; --i) {
    if (x.size(i) == 1) continue;
    if (row < 0) row = next = x.stride(i);
    if (x.stride(i) != next) return -1;
    next *= x.size(i);
  }
  return row < 0 ? width : row;
}

// x, or a contiguous copy when its rows are not evenly spaced.
inline at::Tensor with_rows(const at::Tensor& x) { return row_stride(x) < 0 ? x.contiguous() : x; }

inline const void* data_of(const at::Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }
inline void* mutable_data_of(const at::Tensor& x) { return x.defined() ? x.mutable_data_ptr() : nullptr; }
inline const float* floats_of(const at::Tensor& x) { return static_cast<const float*>(data_of(x)); }
inline float* mutable_floats_of(const at::Tensor& x) { return static_cast<float*>(mutable_data_of(x)); }
inline const uint8_t* flags_of(const at::Tensor& x) { return static_cast<const uint8_t*>(data_of(x)); }

}  // namespace weft
