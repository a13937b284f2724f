// The short causal convolution in front of a state-space mixer: weights, activation, and the last inputs as state.
#pragma once

#include <memory>

#include "nn/context.h"
#include "nn/module.h"
#include "ops/activation/named.h"
#include "ops/conv/conv.h"

namespace weft {

struct ConvWindow {
  std::shared_ptr<Parameter> weight;  // [C, W], 1 <= W <= 16
  std::shared_ptr<Parameter> bias;    // [C]; null: none
  ops::Activation activation = ops::Activation::silu;

  // Tokens kept as state: W - 1, but one at least.
  int64_t past() const;
  // x [B, T, C], past [B, past(), C] -> f(conv(x)) and the new past.
  ops::ShortConvResult run(const at::Tensor& x, const at::Tensor& past, const Context& context) const;
};

// Uniform within 1 / sqrt(W), as torch's Conv1d starts.
Init conv_window_init(int64_t width);

}  // namespace weft
