// What the autograd functions of rnn_parallel have in common.
#pragma once

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <vector>

#include "ops/recurrence.h"
#include "ops/rnn/checks.h"
#include "ops/rnn/rnn.h"

namespace weft::ops {

// As in Rnn, contiguous, all but wx fp32.
struct ParallelInputs {
  at::Tensor wx, bias, parameters, initial, starts;

  ParallelInputs(at::Tensor wx, const std::optional<at::Tensor>& bias,
                 const std::optional<at::Tensor>& parameters, const std::optional<at::Tensor>& initial,
                 const std::optional<at::Tensor>& starts)
      : wx(std::move(wx)),
        bias(bias.value_or(at::Tensor())),
        parameters(parameters.value_or(at::Tensor())),
        initial(initial.value_or(at::Tensor())),
        starts(starts.value_or(at::Tensor())) {}
};

// trajectory: states of all tokens. `keep`: a backward pass may follow.
inline void save_parallel(torch::autograd::AutogradContext* ctx, const Cell& cell, const ParallelInputs& in,
                          const at::Tensor& trajectory, bool keep = true) {
  if (keep) ctx->save_for_backward({in.wx, in.bias, in.parameters, in.initial, in.starts, trajectory});
  ctx->saved_data["cell"] = cell.name;
  ctx->saved_data["wanted"] = std::vector<int64_t>{
      requires_gradient(in.bias), requires_gradient(in.parameters), requires_gradient(in.initial)};
}

// What was saved, and room for the gradients.
struct ParallelBackward {
  torch::autograd::variable_list saved;
  ParallelInputs in;
  const at::Tensor& trajectory;
  const Cell& cell;
  std::vector<int64_t> wanted;
  at::Tensor dh, dstate, dwx, dparameters, dinitial;

  ParallelBackward(torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& upstream)
      : saved(ctx->get_saved_variables()),
        in(saved[0], saved[1], saved[2], saved[3], saved[4]),
        trajectory(saved[5]),
        cell(find_cell(ctx->saved_data["cell"].toStringRef())),
        wanted(ctx->saved_data["wanted"].toIntVector()),
        dh(upstream[0].contiguous()),
        dstate(upstream[1].contiguous()),
        dwx(at::empty_like(in.wx)),
        dparameters(
            at::empty({in.wx.size(0), cell.parameters, in.wx.size(3), in.wx.size(4)}, dstate.options())),
        dinitial(at::empty_like(dstate)) {
    require_first_order("rnn_parallel");
  }

  // For the tensors of the forward function and its four other arguments.
  torch::autograd::variable_list gradients() const {
    const at::Tensor none;
    return {dwx,
            wanted[0] ? dwx.sum(at::IntArrayRef{0, 1}, false, at::kFloat) : none,
            wanted[1] ? dparameters.sum(0) : none,
            wanted[2] ? dinitial : none,
            none,
            none,
            none,
            none,
            none};
  }
};

}  // namespace weft::ops
