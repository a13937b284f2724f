// Leaky integrate-and-fire neurons along the sequence: every channel leaks towards its input and spikes when it
// passes the threshold, which sets it back to 0.
//   v'_t = v_{t-1} + (x_t - v_{t-1}) / tau;  s_t = [v'_t >= threshold];  v_t = v'_t (1 - s_t)
// Backward: the spike has the slope alpha sigma(alpha z) (1 - sigma(alpha z)) at z = v'_t - threshold (a surrogate;
// Neftci et al. 2019, arXiv:1901.09948), and the reset counts as a constant.
//
// B batch, T tokens, E channels.
#pragma once

#include <ATen/core/Tensor.h>

namespace weft::ops {

struct Lif {
  at::Tensor x;              // [B, T, E] any float type
  at::Tensor initial_state;  // [B, E] fp32, or fp64 beside fp64; undefined: zeros
  at::Tensor starts;  // [B, T] bool, true where a document begins: v before it counts as 0; undefined: none
  double tau = 2, threshold = 1, alpha = 4;  // tau >= 1, alpha > 0
};

struct LifResult {
  at::Tensor spikes;  // [B, T, E] 0 or 1, in the type of x
  at::Tensor state;   // [B, E] v after the last token, fp32 or fp64
};

// Differentiable in x and initial_state, once in fp32 and below; second derivatives by the reference. T may be 0.
// The kernels round as the reference in fp32 does to within 1e-6 of v: spikes agree but where v' is that close to
// the threshold. Work: about 5 B T E flops; memory bound.
LifResult lif(const Lif& in);

namespace reference {
LifResult lif(const Lif& in);
}

}  // namespace weft::ops
