// Cross-entropy over a vocabulary without ever holding all logits.
#pragma once

#include <ATen/core/Tensor.h>

namespace weft::ops {

// Per token: -log softmax(scale * (hidden w'))[target], in nats.
//   hidden   [N, D] any float type
//   weight   [V, D] (the head, or tied embeddings), any float type
//   targets  [N] int64; -100 means no loss there (0 is returned). Others outside the vocabulary are errors; on CUDA,
//            where values are not read back, they make their loss NaN.
//   scale    multiplies the logits (muP)
// Returns [N] fp32 (fp64 for fp64). Logits exist for one block of tokens at a time, forward and backward;
// memory beyond the gradients is block * V. Differentiable in hidden and weight (second derivatives:
// WEFT_KERNEL=reference). Error against fp64 relative to max|loss|: fp32 1e-5, bf16 2e-2. Work: 2 N D V flops
// forward, 6 backward.
at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
                                double scale = 1.0);

inline constexpr int64_t kIgnoreTarget = -100;

namespace reference {
at::Tensor linear_cross_entropy(const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets,
                                double scale);
}

}  // namespace weft::ops
