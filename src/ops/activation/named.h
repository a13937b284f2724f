// Activations by name, and their product with a gated branch: the hidden layers of MLPs and experts.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace weft::ops {

enum class Activation {
  silu,          // x sigmoid(x)                                    arXiv:1606.08415
  gelu,          // x Phi(x), by the error function                 arXiv:1606.08415
  gelu_tanh,     // its tanh approximation                          arXiv:1606.08415
  gelu_quick,    // x sigmoid(1.702 x)                              arXiv:1606.08415
  gelu_clipped,  // gelu, clamped to [-10, 10]                      arXiv:2004.09602
  relu,          // max(x, 0)
  relu2,         // max(x, 0)^2                                     arXiv:2109.08668
  relu6,         // min(max(x, 0), 6)
  leaky_relu,    // x for x > 0, else 0.01 x
  tanh,
  sigmoid,
  mish,           // x tanh(softplus(x))                             arXiv:1908.08681
  hard_swish,     // x min(max(x + 3, 0), 6) / 6                     arXiv:1905.02244
  laplace,        // Phi((x - sqrt(1/2)) / sqrt(1/(4 pi)))           arXiv:2209.10655
  sqrt_softplus,  // sqrt(log(1 + e^x))
  none,           // x
};

const std::vector<std::string>& activation_names();  // in the order above
// InputError with the names that are known.
Activation activation_of(const std::string& name);

// f(x) elementwise: any shape and float type, computed in fp32 (fp64 for fp64), in the type of x. Differentiable.
at::Tensor activate(Activation f, const at::Tensor& x);

// f(gate) * x, both of one shape and type; the silu of Shazeer's SwiGLU in one pass.
at::Tensor activate_mul(Activation f, const at::Tensor& gate, const at::Tensor& x);

}  // namespace weft::ops
