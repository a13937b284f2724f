// The recurrence token by token, in plain ATen.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <vector>

#include "ops/rnn/rnn.h"
#include "ops/shape.h"

namespace weft::ops::reference {
namespace {

at::Tensor as(const at::Tensor& x, at::ScalarType type) { return x.defined() ? x.to(type) : x; }

}  // namespace

RnnResult rnn(const Rnn& in) {
  const Cell& cell = find_cell(in.cell);
  const auto type = accumulate_type(in.wx);
  const auto wx = in.wx.to(type), matrix = as(in.recurrent, type), bias = as(in.bias, type);
  const int64_t batch = wx.size(0), tokens = wx.size(1), heads = wx.size(3), width = wx.size(4);
  auto parameters = as(in.parameters, type);
  if (parameters.defined()) parameters = parameters.unsqueeze(1);  // [P, 1, H, D]
  auto states = in.initial_state.defined() ? in.initial_state.to(type)
                                           : at::zeros({cell.states, batch, heads, width}, wx.options());
  std::vector<at::Tensor> outputs;
  for (int64_t t = 0; t < tokens; ++t) {
    if (in.starts.defined()) states = states.masked_fill(in.starts.select(1, t).reshape({1, batch, 1, 1}), 0);
    // [J, B, H, D]: the first gates are recurrent, the last have inputs
    auto gates = at::constant_pad_nd(wx.select(1, t).transpose(0, 1),
                                     {0, 0, 0, 0, 0, 0, cell.gates - cell.input_gates, 0});
    if (cell.recurrent_gates)
      gates = gates + at::constant_pad_nd(at::einsum("jhoi,bhi->jbho", {matrix, states.select(0, 0)}),
                                          {0, 0, 0, 0, 0, 0, 0, cell.gates - cell.recurrent_gates});
    if (bias.defined()) gates = gates + bias.unsqueeze(1);
    states = cell.reference(gates, states, parameters);
    outputs.push_back(states.select(0, 0));
  }
  const auto h = outputs.empty() ? at::empty({batch, 0, heads, width}, wx.options()) : at::stack(outputs, 1);
  return {h.to(in.wx.scalar_type()), states};
}

}  // namespace weft::ops::reference
