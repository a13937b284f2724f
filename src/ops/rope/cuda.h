// The rotary embedding on a CUDA kernel. Internal to the family.
#pragma once

#include "ops/rope/rope.h"

namespace weft::ops {

// Whether the kernel runs for x and turns so many channels.
bool has_cuda_rope(const at::Tensor& x, int64_t dim);

// Of checked inputs; `dim` channels are turned.
at::Tensor cuda_rope(const at::Tensor& x, const at::Tensor& positions, const Rope& options, int64_t dim);

}  // namespace weft::ops
