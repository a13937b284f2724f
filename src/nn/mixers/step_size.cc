#include "nn/mixers/step_size.h"

#include <cmath>

namespace weft {

Init init_step_size(double low, double high) {
  return [low, high](at::Tensor& value, at::Generator& random) {
    value.uniform_(std::log(low), std::log(high), random).exp_().clamp_min_(1e-4);
    value.add_(at::log(-at::expm1(-value)));  // inverse of softplus
  };
}

Init init_log_uniform(double low, double high) {
  return [low, high](at::Tensor& value, at::Generator& random) {
    value.uniform_(low, high, random).clamp_min_(1e-4).log_();
  };
}

at::TensorOptions state_options(const at::TensorOptions& options) {
  return options.dtype(options.dtype() == at::kDouble ? at::kDouble : at::kFloat);
}

}  // namespace weft
