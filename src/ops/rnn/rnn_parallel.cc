#include "ops/rnn/rnn_parallel.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/parallel.h"
#include "ops/recurrence.h"
#include "ops/rnn/checks.h"
#include "ops/rnn/cuda.h"
#include "ops/rnn/kernel_parallel.h"
#include "ops/rnn/parallel_function.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

const float* floats(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }

kernels::RnnParallelProblem problem(const Cell& cell, const ParallelInputs& in,
                                    const at::Tensor& trajectory) {
  kernels::RnnParallelProblem p;
  p.batch = in.wx.size(0);
  p.tokens = in.wx.size(1);
  p.channels = in.wx.size(3) * in.wx.size(4);
  p.gates = cell.gates;
  p.states = cell.states;
  p.parameters = cell.parameters;
  p.wx = floats(in.wx);
  p.bias = floats(in.bias);
  p.parameter = floats(in.parameters);
  p.initial = floats(in.initial);
  p.starts = in.starts.defined() ? in.starts.const_data_ptr<bool>() : nullptr;
  p.trajectory = const_cast<float*>(floats(trajectory));
  return p;
}

template <class Pass>
void for_each_task(const kernels::RnnParallelProblem& p, const Pass& pass) {
  parallel_for(p.batch * kernels::rnn_parallel_blocks(p.channels), 1 + 1000 / std::max<int64_t>(p.tokens, 1),
               pass);
}

class RnnParallelFunction : public torch::autograd::Function<RnnParallelFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& wx,
                                                const std::optional<at::Tensor>& bias,
                                                const std::optional<at::Tensor>& parameters,
                                                const std::optional<at::Tensor>& initial,
                                                const std::optional<at::Tensor>& starts, const Cell* cell,
                                                int64_t iterations, double tolerance, int64_t isa) {
    const ParallelInputs in(wx, bias, parameters, initial, starts);
    const int64_t batch = wx.size(0), tokens = wx.size(1), heads = wx.size(3), width = wx.size(4);
    const auto trajectory = at::empty({batch, tokens, cell->states, heads, width}, wx.options());
    const auto state = at::empty({cell->states, batch, heads, width}, wx.options());
    const auto residuals = at::empty({batch, kernels::rnn_parallel_blocks(heads * width)}, wx.options());
    auto p = problem(*cell, in, trajectory);
    p.iterations = std::min(iterations, tokens - 1);
    p.tolerance = static_cast<float>(tolerance);
    p.state = state.mutable_data_ptr<float>();
    p.residual = residuals.mutable_data_ptr<float>();
    for_each_task(p, [&](int64_t begin, int64_t end) {
      kernels::rnn_parallel_forward(static_cast<simd::Isa>(isa), p, cell->forward, cell->linearize, begin,
                                    end);
    });
    save_parallel(ctx, *cell, in, trajectory);
    ctx->saved_data["isa"] = isa;
    const auto residual = residuals.amax();
    ctx->mark_non_differentiable({residual});
    return {trajectory.select(2, 0), state, residual};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list upstream) {
    const ParallelBackward of(ctx, upstream);
    const kernels::RnnParallelGradient g{.forward = problem(of.cell, of.in, of.trajectory),
                                         .dh = floats(of.dh),
                                         .dstate = floats(of.dstate),
                                         .dwx = of.dwx.mutable_data_ptr<float>(),
                                         .dparameter = of.dparameters.mutable_data_ptr<float>(),
                                         .dinitial = of.dinitial.mutable_data_ptr<float>()};
    for_each_task(g.forward, [&](int64_t begin, int64_t end) {
      kernels::rnn_parallel_backward(static_cast<simd::Isa>(ctx->saved_data["isa"].toInt()), g,
                                     of.cell.linearize, of.cell.backward, begin, end);
    });
    return of.gradients();
  }
};

bool has_kernel(const Cell& cell) {
  return cell.forward && cell.linearize && cell.backward && cell.states <= kernels::kMostParallelStates &&
         std::max(cell.gates, cell.parameters) <= kernels::kMostRnnRows;
}

}  // namespace

RnnParallelResult rnn_parallel(const Rnn& in, const Newton& newton) {
  const Cell& cell = find_cell(in.cell);
  require(cell.recurrent_gates == 0,
          "rnn_parallel: cell {} has a recurrent matrix; only cells whose channels do not meet can be solved",
          cell.name);
  check_rnn("rnn_parallel", in, cell);
  require(newton.iterations >= 0, "rnn_parallel: iterations is {}, expected at least 0", newton.iterations);
  const auto kernel = choose_kernel(in.wx);
  if (kernel == Kernel::cuda)
    if (const auto result = rnn_parallel_cuda(in, newton)) return *result;
  if (!is_cpu_kernel(kernel) || !has_kernel(cell) || in.wx.numel() == 0)
    return reference::rnn_parallel(in, newton);
  const auto result = RnnParallelFunction::apply(
      prepared(in.wx), optional_of(prepared(in.bias)), optional_of(prepared(in.parameters)),
      optional_of(prepared(in.initial_state)), optional_of(prepared(in.starts)), &cell, newton.iterations,
      newton.tolerance, static_cast<int64_t>(isa_of(kernel)));
  return {result[0].to(in.wx.scalar_type()), result[1], result[2]};
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> rnn_parallel_operator(
    std::string cell, const at::Tensor& wx, const std::optional<at::Tensor>& bias,
    const std::optional<at::Tensor>& parameters, const std::optional<at::Tensor>& initial_state,
    const std::optional<at::Tensor>& starts, int64_t iterations, double tolerance) {
  const auto value = [](const std::optional<at::Tensor>& x) { return x.value_or(at::Tensor()); };
  const auto result = rnn_parallel(
      {std::move(cell), wx, {}, value(bias), value(parameters), value(initial_state), value(starts)},
      {iterations, tolerance});
  return {result.h, result.state, result.residual};
}

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def(
      "rnn_parallel(str cell, Tensor wx, Tensor? bias=None, Tensor? parameters=None, Tensor? "
      "initial_state=None, "
      "Tensor? starts=None, int iterations=3, float tolerance=1e-5) -> (Tensor h, Tensor state, Tensor "
      "residual)",
      rnn_parallel_operator);
}

}  // namespace
}  // namespace weft::ops
