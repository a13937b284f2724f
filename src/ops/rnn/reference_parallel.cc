// Newton's method for a recurrence whose channels do not meet, in plain ATen.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "ops/rnn/rnn_parallel.h"
#include "ops/shape.h"

namespace weft::ops::reference {
namespace {

// All tensors with time have it as dimension 2: [J or S, B, T, H, D].
struct Solver {
  const Cell& cell;
  at::Tensor gates, parameters, initial;  // [P, 1, 1, H, D], [S, B, H, D]
  at::Tensor starts;                      // [1, B, T, 1, 1] or undefined

  // States before each token.
  at::Tensor before(const at::Tensor& states) const {
    const auto shifted = at::cat({initial.unsqueeze(2), states.slice(2, 0, states.size(2) - 1)}, 2);
    return starts.defined() ? shifted.masked_fill(starts, 0) : shifted;
  }

  // d new state i / d state j: [S, S, B, T, H, D]
  at::Tensor jacobian(const at::Tensor& states) const {
    const at::AutoGradMode on(true);
    const auto leaf = states.detach().requires_grad_(true);
    const auto fixed = parameters.defined() ? parameters.detach() : parameters;
    const auto after = cell.reference(gates.detach(), leaf, fixed);
    std::vector<at::Tensor> rows;
    for (int64_t i = 0; i < cell.states; ++i)
      rows.push_back(torch::autograd::grad({after[i].sum()}, {leaf}, {}, /*retain_graph=*/true)[0]);
    return at::stack(rows);
  }

  // d_t = J_t d_{t-1} + r_t
  at::Tensor linear(const at::Tensor& j, const at::Tensor& r, at::Tensor d) const {
    std::vector<at::Tensor> all;
    for (int64_t t = 0; t < r.size(2); ++t) {
      if (starts.defined()) d = d.masked_fill(starts.select(2, t), 0);
      d = (j.select(3, t) * d).sum(1) + r.select(2, t);
      all.push_back(d);
    }
    return at::stack(all, 2);
  }

  at::Tensor step_by_step() const {
    std::vector<at::Tensor> all;
    auto states = initial;
    for (int64_t t = 0; t < gates.size(2); ++t) {
      if (starts.defined()) states = states.masked_fill(starts.select(2, t), 0);
      states = cell.reference(gates.select(2, t), states,
                              parameters.defined() ? parameters.select(1, 0) : parameters);
      all.push_back(states);
    }
    return at::stack(all, 2);
  }
};

}  // namespace

RnnParallelResult rnn_parallel(const Rnn& in, const Newton& newton) {
  const Cell& cell = find_cell(in.cell);
  const auto type = accumulate_type(in.wx);
  const auto wx = in.wx.to(type);
  const int64_t batch = wx.size(0), tokens = wx.size(1), heads = wx.size(3), width = wx.size(4);
  const auto wide = [type](const at::Tensor& x) { return x.to(type).unsqueeze(1).unsqueeze(1); };
  Solver s{cell, wx.permute({2, 0, 1, 3, 4}), {}, {}, {}};
  if (in.bias.defined()) s.gates = s.gates + wide(in.bias);
  if (in.parameters.defined()) s.parameters = wide(in.parameters);
  s.initial = in.initial_state.defined() ? in.initial_state.to(type)
                                         : at::zeros({cell.states, batch, heads, width}, wx.options());
  if (in.starts.defined()) s.starts = in.starts.reshape({1, batch, tokens, 1, 1});
  if (wx.numel() == 0)
    return {at::empty({batch, tokens, heads, width}, in.wx.options()), s.initial,
            at::zeros({}, wx.options())};

  at::Tensor states, residual;
  {
    const c10::NoGradGuard no_grad;
    const auto step = [&](const at::Tensor& x) { return cell.reference(s.gates, s.before(x), s.parameters); };
    const auto nothing = at::zeros({cell.states, batch, tokens, heads, width}, wx.options());
    states = step(nothing);
    for (int64_t k = 0; k < newton.iterations; ++k)
      states =
          states + s.linear(s.jacobian(s.before(states)), step(states) - states, at::zeros_like(s.initial));
    const auto worst = (step(states) - states).abs().amax(at::IntArrayRef{0, 2}, true);  // [1, B, 1, H, D]
    residual = worst.amax();
    const auto failed = (worst <= newton.tolerance).logical_not();
    if (failed.any().item<bool>()) states = at::where(failed, s.step_by_step(), states);
  }
  // Zero, with the gradients of the recurrence linearised at the states.
  const auto before = s.before(states).detach();
  const auto after = cell.reference(s.gates, before, s.parameters);
  states = states + s.linear(s.jacobian(before), after - after.detach(), s.initial - s.initial.detach());
  return {states[0].to(in.wx.scalar_type()), states.select(2, tokens - 1), residual};
}

}  // namespace weft::ops::reference
