// Linear attention with a diagonal plus low rank erase, on the CPU kernels; private to the folder.
#pragma once

#include "ops/linear_attention/linear_attention.h"
#include "ops/simd/isa.h"

namespace weft::ops {

// `in` as kernel_inputs makes it. Differentiable; y is fp32.
LinearAttentionResult dplr_attention(const LinearAttention& in, simd::Isa isa);

// One token, in.initial_state in place. Returns y in fp32.
at::Tensor dplr_step(const LinearAttention& in, simd::Isa isa);

}  // namespace weft::ops
