// Initialisations that the state-space and delta-rule mixers share. Gu and Dao 2023, arXiv:2312.00752.
#pragma once

#include "nn/module.h"

namespace weft {

// Bias whose softplus is log-uniform in [low, high], at least 1e-4: the step size at the start of training.
Init init_step_size(double low, double high);

// log of a uniform draw from [low, high].
Init init_log_uniform(double low, double high);

// Options for a recurrent state beside activations of `options`: fp32, or fp64 beside fp64.
at::TensorOptions state_options(const at::TensorOptions& options);

}  // namespace weft
