// Elementwise products with an activation: what stands between the linear maps of gated blocks.
#pragma once

#include <ATen/core/Tensor.h>

namespace weft::ops {

// silu(gate) * x, with silu(g) = g / (1 + exp(-g)): the hidden layer of a SwiGLU (Shazeer 2020,
// arXiv:2002.05202), the output gate of Mamba. gate and x have one shape; the result has the wider of their
// types, computed in fp32 (fp64 for fp64). One pass forward, one backward, which computes the sigmoid again.
// Differentiable in both; second derivatives by the reference (WEFT_KERNEL=reference).
// Error against fp64 relative to max|y|: fp32 1e-5, bf16 and fp16 1e-2.
at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& x);

namespace reference {
at::Tensor silu_mul(const at::Tensor& gate, const at::Tensor& x);
}

}  // namespace weft::ops
