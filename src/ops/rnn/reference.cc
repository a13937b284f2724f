// The recurrence token by token, in plain ATen.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <vector>

#include "ops/rnn/rnn.h"
#include "ops/shape.h"

namespace weft::ops::reference {

RnnResult rnn(const Rnn& in) {
  const Cell& cell = find_cell(in.cell);
  const auto type = accumulate_type(in.wx);
  auto wx = in.wx.to(type);  // [B, T, J, H, D]
  if (in.bias.defined()) wx = wx + in.bias.to(type);
  const int64_t batch = wx.size(0), tokens = wx.size(1), heads = wx.size(3), width = wx.size(4);
  const auto matrix = in.recurrent.to(type);  // [J, H, D, D]
  auto states = in.initial_state.defined() ? in.initial_state.to(type)
                                           : at::zeros({cell.states, batch, heads, width}, wx.options());
  std::vector<at::Tensor> outputs;
  for (int64_t t = 0; t < tokens; ++t) {
    if (in.starts.defined()) states = states.masked_fill(in.starts.select(1, t).reshape({1, batch, 1, 1}), 0);
    const auto feedback = at::einsum("jhoi,bhi->jbho", {matrix, states.select(0, 0)});  // [J, B, H, D]
    states = cell.reference(wx.select(1, t).permute({1, 0, 2, 3}) + feedback, states);
    outputs.push_back(states.select(0, 0));
  }
  const auto h = outputs.empty() ? at::empty({batch, 0, heads, width}, wx.options()) : at::stack(outputs, 1);
  return {h.to(in.wx.scalar_type()), states};
}

}  // namespace weft::ops::reference
