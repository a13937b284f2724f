// A sequence mixer as a matrix over tokens: which output depends on which input. For a mixer that is linear in its input
// y_t = sum_s J[t, s] x_s exactly; for the others J is the derivative at the given input. The matrix-mixer view: Hwang et al.
// 2024, arXiv:2407.09941.
#pragma once

#include <ATen/core/Tensor.h>

#include "nn/layer.h"
#include "nn/mixer.h"

namespace weft {

// J [T, D, T, D] in the type of the input: J[t, i, s, j] is the derivative of channel i of output t by channel j of input s, for
// the one row of `input` [1, T, D] and a fresh state. InputError for more than one row and for more than `limit` numbers.
// Costs T forward and backward passes of D rows.
at::Tensor mixing_jacobian(SequenceMixer& mixer, const MixerInput& input, int64_t limit = int64_t{1} << 28);

// [T, T]: entry (t, s) is the Frobenius norm of J[t, :, s, :], how strongly output t depends on input s at all.
at::Tensor mixing_strength(const at::Tensor& jacobian);
// [T, T]: J[t, channel, s, channel], with its sign: for mixers that keep channels apart that is their matrix.
at::Tensor mixing_of_channel(const at::Tensor& jacobian, int64_t channel);

// Lines of numbers separated by commas.
std::string matrix_csv(const at::Tensor& matrix);
// A picture: rows are outputs, columns inputs, both from the upper left; blue for positive, red for negative, white for 0.
std::string matrix_svg(const at::Tensor& matrix, const std::string& title);

}  // namespace weft
