// Checks and texts about tensors that every op uses.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>
#include <string>

namespace weft {

// "[2, 128, 4, 64]"
std::string shape_text(const at::Tensor& x);
std::string shape_text(at::IntArrayRef sizes);

// "linear_attention: k is [2, 128, 4, 64], expected [2, 128, 4, 96]"; -1 accepts any size. InputError.
void require_shape(const char* op, const char* name, const at::Tensor& x, at::IntArrayRef expected);

// InputError unless x is defined, of floating (or complex) type and on the device of `like`.
void require_like(const char* op, const char* name, const at::Tensor& x, const at::Tensor& like);

// The type sums and states are kept in: fp64 for fp64 inputs, else fp32.
at::ScalarType accumulate_type(const at::Tensor& x);

}  // namespace weft
