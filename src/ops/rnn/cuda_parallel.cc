// rnn_parallel on CUDA.
#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "ops/cuda_kernels.h"
#include "ops/recurrence.h"
#include "ops/rnn/checks.h"
#include "ops/rnn/cuda.h"
#include "ops/rnn/cuda_arguments.h"
#include "ops/rnn/kernel_cuda_parallel.h"

namespace weft::ops {
namespace {

using kernels::RnnParallelCuda;
using kernels::RnnParallelCudaKernels;

struct Inputs {
  at::Tensor wx, bias, parameters, initial, starts;  // as in Rnn, contiguous, all but wx fp32
};

RnnParallelCuda problem(const Cell& cell, const Inputs& in, const at::Tensor& trajectory) {
  RnnParallelCuda p;
  p.cell = *cuda_cell(cell);
  p.type = cuda_type(in.wx);
  p.batch = in.wx.size(0);
  p.tokens = in.wx.size(1);
  p.channels = in.wx.size(3) * in.wx.size(4);
  p.wx = in.wx.const_data_ptr();
  p.bias = data<float>(in.bias);
  p.parameter = data<float>(in.parameters);
  p.initial = data<float>(in.initial);
  p.starts = data<bool>(in.starts);
  p.trajectory = trajectory.defined() ? static_cast<float*>(trajectory.data_ptr()) : nullptr;
  return p;
}

class RnnParallelCudaFunction : public torch::autograd::Function<RnnParallelCudaFunction> {
 public:
  // keep: a backward pass may follow
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& wx,
                                                const std::optional<at::Tensor>& bias,
                                                const at::Tensor& parameters,
                                                const std::optional<at::Tensor>& initial,
                                                const std::optional<at::Tensor>& starts, const Cell* cell,
                                                int64_t iterations, double tolerance, bool keep) {
    const auto value = [](const std::optional<at::Tensor>& x) { return x.value_or(at::Tensor()); };
    const Inputs in{wx, value(bias), parameters, value(initial), value(starts)};
    const int64_t batch = wx.size(0), tokens = wx.size(1), heads = wx.size(3), width = wx.size(4);
    const auto floats = wx.options().dtype(at::kFloat);
    at::Tensor trajectory;
    if (keep) trajectory = at::empty({batch, tokens, cell->states, heads, width}, floats);
    auto p = problem(*cell, in, trajectory);
    p.iterations = std::min(iterations, tokens - 1);
    p.tolerance = static_cast<float>(tolerance);
    const int64_t blocks = kernels::rnn_parallel_cuda_blocks(p.channels);
    const auto h = at::empty({batch, tokens, heads, width}, wx.options());
    const auto state = at::empty({cell->states, batch, heads, width}, floats);
    const auto residuals = at::empty({batch, blocks}, floats);
    const auto carried =
        at::empty({batch, blocks, p.iterations + 1, cell->states, kernels::kRnnParallelChannels}, floats);
    p.h = h.mutable_data_ptr();
    p.state = state.mutable_data_ptr<float>();
    p.residual = residuals.mutable_data_ptr<float>();
    p.carried = carried.mutable_data_ptr<float>();
    const CudaLaunch launch(wx);
    check_launch("rnn_parallel", CudaKernels<RnnParallelCudaKernels>::get()->forward(p, launch.stream()));
    if (keep) ctx->save_for_backward({wx, in.bias, in.parameters, in.initial, in.starts, trajectory});
    ctx->saved_data["cell"] = cell->name;
    ctx->saved_data["wanted"] = std::vector<int64_t>{
        requires_gradient(in.bias), requires_gradient(in.parameters), requires_gradient(in.initial)};
    const auto residual = residuals.amax();
    ctx->mark_non_differentiable({residual});
    return {h, state, residual};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list upstream) {
    require_first_order("rnn_parallel");
    const auto saved = ctx->get_saved_variables();
    const Inputs in{saved[0], saved[1], saved[2], saved[3], saved[4]};
    const Cell& cell = find_cell(ctx->saved_data["cell"].toStringRef());
    const auto wanted = ctx->saved_data["wanted"].toIntVector();
    const auto dh = upstream[0].contiguous(), dstate = upstream[1].contiguous();
    const auto dwx = at::empty_like(in.wx), dinitial = at::empty_like(dstate);
    const auto dparameters =
        at::empty({in.wx.size(0), cell.parameters, in.wx.size(3), in.wx.size(4)}, dstate.options());
    const kernels::RnnParallelCudaGradient g{.forward = problem(cell, in, saved[5]),
                                             .dh = dh.const_data_ptr(),
                                             .dstate = dstate.const_data_ptr<float>(),
                                             .dwx = dwx.mutable_data_ptr(),
                                             .dparameter = dparameters.mutable_data_ptr<float>(),
                                             .dinitial = dinitial.mutable_data_ptr<float>()};
    const CudaLaunch launch(dwx);
    check_launch("rnn_parallel", CudaKernels<RnnParallelCudaKernels>::get()->backward(g, launch.stream()));
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

}  // namespace

std::optional<RnnParallelResult> rnn_parallel_cuda(const Rnn& in, const Newton& newton) {
  const Cell& cell = find_cell(in.cell);
  constexpr int64_t kMostBatch = 65535;  // of a grid in y
  if (!CudaKernels<RnnParallelCudaKernels>::get() || !cuda_cell(cell) || in.wx.numel() == 0 ||
      in.wx.size(0) > kMostBatch)
    return std::nullopt;
  const auto as = [](const at::Tensor& x, at::ScalarType type) {
    return x.defined() ? std::optional<at::Tensor>(x.to(type).contiguous()) : std::nullopt;
  };
  const auto result = RnnParallelCudaFunction::apply(
      in.wx.contiguous(), as(in.bias, at::kFloat), *as(in.parameters, at::kFloat),
      as(in.initial_state, at::kFloat), as(in.starts, at::kBool), &cell, newton.iterations, newton.tolerance,
      needs_gradient(in));
  return RnnParallelResult{result[0], result[1], result[2]};
}

}  // namespace weft::ops
