// Linear attention on its CUDA kernels; private to the folder. Nothing here waits for the device.
#pragma once

#include <optional>

#include "ops/linear_attention/linear_attention.h"
#include "ops/linear_attention/ring.h"

namespace weft::ops {

// Checked inputs on a GPU, all of a type that kernels take. None where no kernel takes their form or sizes.
// Differentiable.
std::optional<LinearAttentionResult> cuda_linear_attention(const LinearAttention& in);

// One token, in.initial_state in place. Returns y.
std::optional<at::Tensor> cuda_linear_attention_step(const LinearAttention& in);

// One token into the ring, whose lengths move on. Returns y.
std::optional<at::Tensor> cuda_linear_attention_ring_step(const LinearAttention& in,
                                                          LinearAttentionRing& ring);
// False: no kernel takes it, nothing was done.
bool cuda_linear_attention_ring_fold(LinearAttentionRing& ring);

}  // namespace weft::ops
