// Activation checkpointing. Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost",
// arXiv:1604.06174.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace weft {

// Calls f(inputs) without recording its inside, and calls it once more in the backward pass. `f` must be
// deterministic. Gradients flow to `inputs` and to every leaf that f reads (parameters); inputs may be
// undefined.
std::vector<at::Tensor> recompute(const std::vector<at::Tensor>& inputs,
                                  std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)> f);

}  // namespace weft
