// The forms of mixers whose recurrent state is the matrix "S" [B, H, K, V] of ops::linear_attention.
#pragma once

#include "nn/mixer.h"
#include "ops/linear_attention/linear_attention.h"

namespace weft {

// Runs `problem` (without initial state) from state "S" and leaves the state after it there. Returns the read-out
// [B, T, H, V].
at::Tensor attend(ops::LinearAttention problem, State& state);
// The same for one token, in place.
at::Tensor attend_step(ops::LinearAttention problem, State& state);
using Attend = at::Tensor (*)(ops::LinearAttention problem, State& state);

// The tokens of `problem` as a map of "S".
AffineMap attend_summary(const ops::LinearAttention& problem);

// "S" before the first token; `options` are those of the activations.
at::Tensor matrix_state(int64_t batch, int64_t heads, int64_t key_width, int64_t value_width,
                        const at::TensorOptions& options);

}  // namespace weft
