#include "ops/activation/named.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "base/error.h"
#include "base/text.h"
#include "ops/activation/activation.h"
#include "ops/shape.h"

namespace weft::ops {
namespace {

at::Tensor laplace(const at::Tensor& x) {
  constexpr double kMean = 0.707107,
                   kDeviation = 0.282095;  // rounded so in the paper, and in what was trained with it
  return 0.5 * (1 + at::erf((x - kMean) / (kDeviation * std::numbers::sqrt2)));
}

at::Tensor wide_activation(Activation f, const at::Tensor& x) {
  switch (f) {
    case Activation::silu:
      return at::silu(x);
    case Activation::gelu:
      return at::gelu(x);
    case Activation::gelu_tanh:
      return at::gelu(x, "tanh");
    case Activation::gelu_quick:
      return x * at::sigmoid(1.702 * x);
    case Activation::gelu_clipped:
      return at::clamp(at::gelu(x), -10, 10);
    case Activation::relu:
      return at::relu(x);
    case Activation::relu2:
      return at::relu(x).square();
    case Activation::relu6:
      return at::clamp(x, 0, 6);
    case Activation::leaky_relu:
      return at::leaky_relu(x, 0.01);
    case Activation::tanh:
      return at::tanh(x);
    case Activation::sigmoid:
      return at::sigmoid(x);
    case Activation::mish:
      return at::mish(x);
    case Activation::hard_swish:
      return at::hardswish(x);
    case Activation::laplace:
      return laplace(x);
    case Activation::sqrt_softplus:
      return at::softplus(x).sqrt();
    case Activation::none:
      break;
  }
  return x;
}

}  // namespace

const std::vector<std::string>& activation_names() {
  static const std::vector<std::string> names{
      "silu",       "gelu", "gelu_tanh", "gelu_quick", "gelu_clipped", "relu",    "relu2",         "relu6",
      "leaky_relu", "tanh", "sigmoid",   "mish",       "hard_swish",   "laplace", "sqrt_softplus", "none"};
  return names;
}

Activation activation_of(const std::string& name) {
  const auto& names = activation_names();
  const auto found = std::find(names.begin(), names.end(), name);
  require(found != names.end(), "'{}' is not an activation; known: {}", name, join(names));
  return static_cast<Activation>(found - names.begin());
}

at::Tensor activate(Activation f, const at::Tensor& x) {
  return wide_activation(f, x.to(accumulate_type(x))).to(x.scalar_type());
}

at::Tensor activate_mul(Activation f, const at::Tensor& gate, const at::Tensor& x) {
  if (f == Activation::silu) return silu_mul(gate, x);
  const auto wide = accumulate_type(x);
  return (wide_activation(f, gate.to(wide)) * x.to(wide)).to(x.scalar_type());
}

}  // namespace weft::ops
