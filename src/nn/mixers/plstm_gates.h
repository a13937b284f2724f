// Gates of pLSTM, as its authors start them. Poppel et al. 2025, arXiv:2506.11997.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "nn/module.h"

namespace weft {

// Biases before training: little is written and read, next to nothing directly, and nearly all is passed on.
constexpr double kPlstmSource = -4, kPlstmMark = -4, kPlstmDirect = -6, kPlstmTransition = 1;
constexpr double kPlstmProjection =
    1.0954451150103321;  // sqrt(6 / 5): q, k, v, out start with std sqrt(2 / (5 in))

// Input weights of gates: normal with `std`; no weight decay.
LinearOptions plstm_gate_options(double std, int64_t in);
// Row i of a bias filled with values[i].
Init plstm_gate_bias(std::vector<double> values);

// tanh(5 z), and the log of its absolute value, accurate where it is next to 1.
at::Tensor transition(const at::Tensor& z);
at::Tensor log_abs_transition(const at::Tensor& z);

}  // namespace weft
