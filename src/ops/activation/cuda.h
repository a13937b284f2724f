// Products with an activation on CUDA kernels. Internal to the family.
#pragma once

#include <ATen/core/Tensor.h>

namespace weft::ops {

// Whether the kernels run for x and take it with this gate.
bool has_cuda_silu_mul(const at::Tensor& gate, const at::Tensor& x);

// Of checked inputs.
at::Tensor cuda_silu_mul(const at::Tensor& gate, const at::Tensor& x);

}  // namespace weft::ops
