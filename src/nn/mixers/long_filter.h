// A causal filter of fixed length for every channel, with the inputs that it still needs as its state.
#pragma once

#include "nn/mixer.h"

namespace weft {

// y[t, e] = sum_{s < L} kernel[e, s] u[t - s, e] inside the document of t: kernel [E, L], u [B, T, E] -> [B, T, E]. The
// entry `name` of `state`, [B, L - 1, E] in the type of u, holds the inputs before u, oldest first, those of other documents
// as 0; it moves on by T tokens.
at::Tensor run_filter(const at::Tensor& kernel, const at::Tensor& u, State& state, const Context& context,
                      const std::string& name = "inputs");
// One token, as a dot product.
at::Tensor step_filter(const at::Tensor& kernel, const at::Tensor& u, State& state,
                       const std::string& name = "inputs");
void add_filter_state(State& state, int64_t batch, int64_t channels, int64_t length,
                      const at::TensorOptions& options, const std::string& name = "inputs");

}  // namespace weft
