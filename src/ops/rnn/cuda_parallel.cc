// rnn_parallel on CUDA.
#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "ops/cuda_kernels.h"
#include "ops/rnn/cuda.h"
#include "ops/rnn/cuda_arguments.h"
#include "ops/rnn/kernel_cuda_parallel.h"
#include "ops/rnn/parallel_function.h"

namespace weft::ops {
namespace {

using kernels::RnnParallelCuda;
using kernels::RnnParallelCudaKernels;

RnnParallelCuda problem(const Cell& cell, const ParallelInputs& in, const at::Tensor& trajectory) {
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
    const ParallelInputs in(wx, bias, parameters, initial, starts);
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
    save_parallel(ctx, *cell, in, trajectory, keep);
    const auto residual = residuals.amax();
    ctx->mark_non_differentiable({residual});
    return {h, state, residual};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list upstream) {
    const ParallelBackward of(ctx, upstream);
    const kernels::RnnParallelCudaGradient g{.forward = problem(of.cell, of.in, of.trajectory),
                                             .dh = of.dh.const_data_ptr(),
                                             .dstate = of.dstate.const_data_ptr<float>(),
                                             .dwx = of.dwx.mutable_data_ptr(),
                                             .dparameter = of.dparameters.mutable_data_ptr<float>(),
                                             .dinitial = of.dinitial.mutable_data_ptr<float>()};
    const CudaLaunch launch(of.dwx);
    check_launch("rnn_parallel", CudaKernels<RnnParallelCudaKernels>::get()->backward(g, launch.stream()));
    return of.gradients();
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
