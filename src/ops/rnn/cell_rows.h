// What a CPU kernel hands to a cell: rows of n contiguous fp32 values, one row for each gate, state and
// parameter, in which position i of every row belongs to the same neuron, sequence and token.
#pragma once

#include <cstdint>

namespace weft::ops {

// J gates, S states, P parameters as in ops::Cell.
struct CellStep {
  int64_t n = 0;
  const float* const* gates = nullptr;       // [J] sums before the pointwise step
  const float* const* states = nullptr;      // [S] states before
  const float* const* parameters = nullptr;  // [P]
  float* const* saved = nullptr;       // [J] out: what the backward step wants; may be the rows of `gates`
  float* const* new_states = nullptr;  // [S] out
  float* const* jacobian =
      nullptr;  // [S S] out, linearize only: row i S + j is d new_states[i] / d states[j]
};

struct CellGradient {
  int64_t n = 0;
  const float* const* saved = nullptr;         // [J] as the step left it
  const float* const* states = nullptr;        // [S] states before
  const float* const* parameters = nullptr;    // [P]
  const float* const* new_states = nullptr;    // [S]
  const float* const* d_new_states = nullptr;  // [S]
  float* const* d_gates = nullptr;             // [J] out
  float* const* d_states = nullptr;            // [S] out
  float* const* d_parameters = nullptr;        // [P] added to
};

}  // namespace weft::ops
