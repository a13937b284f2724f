// The cross-entropy on CUDA kernels. Internal to the family.
#pragma once

#include <ATen/core/Tensor.h>

namespace weft::ops {

// Whether the kernels run for `hidden` and take it with this weight.
bool has_cuda_loss(const at::Tensor& hidden, const at::Tensor& weight);

// Of checked inputs, but for the values of the targets, which lie on the device: one outside the vocabulary makes its
// loss NaN.
at::Tensor cuda_linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight,
                                     const at::Tensor& targets, double scale);

}  // namespace weft::ops
