// The op on a GPU.
#pragma once

#include "ops/attention/attention.h"

namespace weft::ops::internal {

// True when the CUDA kernels are there and take inputs of these types.
bool cuda_attention_takes(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const at::Tensor& slopes);

// For checked inputs on a CUDA device.
AttentionResult cuda_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                               const Mask& mask, const AttentionOptions& options);

}  // namespace weft::ops::internal
