// The forget gate of both HGRNs, bounded from below by a value that rises with the layer. Qin et al. 2023,
// arXiv:2311.04823.
#pragma once

#include "nn/mixer.h"

namespace weft {

struct ForgetGate {
  at::Tensor log_keep;  // log f, f = bound + (1 - bound) sigmoid(z)
  at::Tensor write;     // 1 - f, to full relative precision
};

// z in fp32 or fp64; 0 <= bound < 1.
ForgetGate forget_gate(const at::Tensor& z, double bound);

// `given` in [0, 1), or layer / num_layers when it is negative. The papers learn one table of bounds for all layers
// together: layer l has the sum of the first l + 1 rows of its softmax over layers, less the first. Modules of weft
// share no parameters between layers; layer / num_layers is what that table gives before training, here it is fixed.
double forget_bound(double given, const Site& site);

}  // namespace weft
