#include "nn/mixers/forget_gate.h"

#include <cmath>

namespace weft {

ForgetGate forget_gate(const at::Tensor& z, double bound) {
  const auto log_sigmoid = at::log_sigmoid(z);
  const auto write = (1 - bound) * at::sigmoid(-z);
  if (bound == 0) return {log_sigmoid, write};
  const auto low = at::full({}, std::log(bound), z.options());
  return {at::logaddexp(low, log_sigmoid + std::log1p(-bound)), write};
}

double forget_bound(double given, const Site& site) {
  if (given >= 0) return given;
  return static_cast<double>(site.layer) / static_cast<double>(site.num_layers);
}

}  // namespace weft
