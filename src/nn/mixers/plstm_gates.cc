#include "nn/mixers/plstm_gates.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>

namespace weft {
namespace {
constexpr double kSteepness = 5;
}

LinearOptions plstm_gate_options(double std, int64_t in) {
  return {.scale = std * std::sqrt(3.0 * static_cast<double>(in)),
          .rules = {.role = ParameterRules::Role::vector}};
}

Init plstm_gate_bias(std::vector<double> values) {
  return [values = std::move(values)](at::Tensor& bias, at::Generator&) {
    for (size_t i = 0; i < values.size(); ++i) bias.select(0, static_cast<int64_t>(i)).fill_(values[i]);
  };
}

at::Tensor transition(const at::Tensor& z) { return at::tanh(kSteepness * z); }

// tanh u = (1 - e^{-2u}) / (1 + e^{-2u}) for u > 0. The bound keeps zero away, where the log has no gradient.
at::Tensor log_abs_transition(const at::Tensor& z) {
  const auto twice = -2 * (kSteepness * z).abs().clamp_min(1e-12);
  return (-at::expm1(twice)).log() - at::log1p(twice.exp());
}

}  // namespace weft
