// CPU kernels of products with an activation, over contiguous fp32.
#pragma once

#include <cstdint>

#include "ops/simd/isa.h"

namespace weft::kernels {

// y[i] = silu(gate[i]) x[i]
void silu_mul_forward(simd::Isa isa, const float* gate, const float* x, float* y, int64_t begin, int64_t end);

// Gradients of both for the gradient dy of y.
void silu_mul_backward(simd::Isa isa, const float* gate, const float* x, const float* dy, float* dgate,
                       float* dx, int64_t begin, int64_t end);

}  // namespace weft::kernels
