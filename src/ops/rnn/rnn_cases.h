// Shapes, inputs and bounds of rnn, for tests and benchmarks.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>
#include <string>
#include <vector>

#include "ops/rnn/rnn.h"

namespace weft::ops {

struct RnnCase {
  std::string name;
  int64_t batch, tokens, heads, width;
  bool bias = false, initial = false, starts = false;
  double flops(const Cell& cell) const {
    return 2.0 * static_cast<double>(batch * tokens * cell.recurrent_gates * heads * width * width);
  }
};

inline double rnn_bound(at::ScalarType type) { return type == at::kFloat ? 1e-5 : 2e-2; }

// |R| is about 1. `type` is that of wx, R and bias; states are fp32, or fp64 with fp64.
inline Rnn make_rnn_inputs(const std::string& cell_name, const RnnCase& c, at::ScalarType type = at::kFloat,
                           uint64_t seed = 1) {
  const Cell& cell = find_cell(cell_name);
  auto generator = at::detail::createCPUGenerator(seed);
  const auto normal = [&](at::IntArrayRef shape) {
    return at::randn(shape, generator, at::TensorOptions(at::kFloat));
  };
  Rnn in;
  in.cell = cell_name;
  in.wx = normal({c.batch, c.tokens, cell.input_gates, c.heads, c.width}).to(type);
  const double scale = 0.5 / std::sqrt(static_cast<double>(c.width));
  if (cell.recurrent_gates)
    in.recurrent = (normal({cell.recurrent_gates, c.heads, c.width, c.width}) * scale).to(type);
  if (cell.parameters) in.parameters = (normal({cell.parameters, c.heads, c.width}) * 0.3).to(type);
  if (c.bias) in.bias = normal({cell.gates, c.heads, c.width}).to(type);
  if (c.initial) {
    in.initial_state = normal({cell.states, c.batch, c.heads, c.width});
    if (cell_name == "slstm")
      in.initial_state[2] = at::abs(in.initial_state[2]) + 1;  // the normaliser is at least 1
    in.initial_state = in.initial_state.to(type == at::kDouble ? at::kDouble : at::kFloat);
  }
  if (c.starts) {
    in.starts = at::rand({c.batch, c.tokens}, generator, at::TensorOptions(at::kFloat)) < 0.1;
    if (c.batch && c.tokens > 2) {
      in.starts[0][0].fill_(true);
      in.starts[0].slice(0, c.tokens / 2, c.tokens / 2 + 2).fill_(true);
    }
  }
  return in;
}

inline const std::vector<RnnCase>& rnn_cases() {
  static const std::vector<RnnCase> cases = {
      {"empty", 2, 0, 2, 3, true, true},
      {"one", 1, 1, 1, 1},
      {"odd", 3, 17, 2, 5, true, true, true},
      {"vectors", 2, 63, 3, 32, true, false, true},
      {"long", 1, 256, 1, 4, false, true},
      {"wide", 5, 20, 1, 70, true, true, true},
      {"many_rows", 35, 9, 2, 8, true, true, true},
      {"columns", 3, 7, 1, 300, true, true, true},
      {"blocks", 2, 130, 1, 140, true, false, true},
  };
  return cases;
}

}  // namespace weft::ops
