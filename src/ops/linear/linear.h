// Linear maps of the same rows. In decoding, where a GPU reads weights for a few rows only, all maps are one kernel; else
// they are the library's products.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace weft::ops {

// y_i = x W_i': x [..., D], weights [N_i, D] of any float type on the device of x, which are cast to its type -> [..., N_i] in
// the type of x. InputError for other shapes or devices. Differentiable. Error against fp64 relative to max|y|: fp32 1e-5, bf16 and fp16 2e-2.
std::vector<at::Tensor> linear(const at::Tensor& x, const std::vector<at::Tensor>& weights);
// One map with a bias [N] or, undefined, without.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias);

// silu(x G') * (x U'), the hidden layer of a SwiGLU. Shazeer 2020, arXiv:2002.05202.
at::Tensor swiglu(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& up);

}  // namespace weft::ops
