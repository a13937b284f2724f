#include "ops/conv/cuda.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/conv/kernel_cuda.h"
#include "ops/cuda_kernels.h"
#include "ops/cuda_tensors.h"
#include "ops/recurrence.h"

namespace weft::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

at::Tensor tensor(const Optional& x) { return x.value_or(at::Tensor()); }

const kernels::ShortConvCuda& table() { return *CudaKernels<kernels::ShortConvCuda>::get(); }

// What the kernels read: x with contiguous rows, the others contiguous, `initial_state` in the type of x.
ShortConv prepared(const ShortConv& in) {
  const auto contiguous = [](const at::Tensor& x) { return x.defined() ? x.contiguous() : x; };
  ShortConv out = in;
  if (in.x.stride(2) != 1 && in.x.size(2) != 1) out.x = in.x.contiguous();
  out.weight = contiguous(in_kernel_type(in.weight));
  out.bias = contiguous(in_kernel_type(in.bias));
  if (in.initial_state.defined()) out.initial_state = in.initial_state.to(in.x.scalar_type()).contiguous();
  out.starts = contiguous(in.starts);
  return out;
}

kernels::CudaShortConv problem_of(const ShortConv& in) {
  kernels::CudaShortConv p;
  p.batch = in.x.size(0), p.tokens = in.x.size(1), p.channels = in.x.size(2), p.width = in.weight.size(1);
  p.silu = in.silu, p.type = cuda_type(in.x), p.weight_type = cuda_type(in.weight);
  if (in.bias.defined()) p.bias_type = cuda_type(in.bias);
  p.x = in.x.const_data_ptr(), p.x_batch = in.x.stride(0), p.x_token = in.x.stride(1);
  p.weight = in.weight.const_data_ptr(), p.bias = data_of(in.bias), p.before = data_of(in.initial_state);
  p.starts = flags_of(in.starts);
  return p;
}

at::Tensor empty_state(const ShortConv& in) {
  return at::empty({in.x.size(0), in.weight.size(1) - 1, in.x.size(2)}, in.x.options());
}

ShortConvResult run_forward(const ShortConv& in) {
  const CudaLaunch launch(in.x);
  auto p = problem_of(in);
  const ShortConvResult out{at::empty(in.x.sizes(), in.x.options()), empty_state(in)};
  p.y = out.y.mutable_data_ptr(), p.state = out.state.mutable_data_ptr();
  check_launch("short_conv", table().forward(p, launch.stream()));
  return out;
}

class CudaShortConvFunction final : public torch::autograd::Function<CudaShortConvFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight,
                               const Optional& bias, const Optional& before, const Optional& starts,
                               bool silu) {
    const ShortConv in{x, weight, tensor(bias), silu, tensor(before), tensor(starts)};
    ctx->save_for_backward({x, weight, in.bias, in.initial_state, in.starts});
    ctx->saved_data["silu"] = silu;
    const auto out = run_forward(in);
    return {out.y, out.state};
  }

  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    require_first_order("short_conv");
    const auto saved = ctx->get_saved_variables();
    const ShortConv in{saved[0], saved[1], saved[2], ctx->saved_data["silu"].toBool(), saved[3], saved[4]};
    const CudaLaunch launch(in.x);
    kernels::CudaShortConvGradient g{.forward = problem_of(in)};
    const auto& p = g.forward;
    size_t edge = 2;  // only tensors that were given have one
    const bool wants_bias = in.bias.defined() && ctx->needs_input_grad(edge++);
    const bool wants_before = in.initial_state.defined() && ctx->needs_input_grad(edge);
    const bool wants_weight = ctx->needs_input_grad(1);

    const auto dy = upstream[0].contiguous(), dstate = upstream[1].contiguous();
    at::Tensor dx, dweight, dbias, dbefore, partial;
    if (ctx->needs_input_grad(0)) dx = at::empty(in.x.sizes(), in.x.options());
    if (wants_before) dbefore = empty_state(in);
    if (wants_weight) dweight = at::empty_like(in.weight);
    if (wants_bias) dbias = at::empty_like(in.bias);
    if (wants_weight || wants_bias)
      partial = at::empty({table().partials(p), p.width + 1, p.channels}, in.x.options().dtype(at::kFloat));
    g.dy = dy.const_data_ptr(), g.dstate = dstate.const_data_ptr();
    g.dx = mutable_data_of(dx), g.dbefore = mutable_data_of(dbefore), g.partial = mutable_floats_of(partial);
    g.dweight = mutable_data_of(dweight), g.dbias = mutable_data_of(dbias);
    check_launch("short_conv", table().backward(g, launch.stream()));
    return {dx, dweight, dbias, dbefore, {}, {}};  // starts, silu
  }
};

}  // namespace

bool has_cuda_short_conv() { return CudaKernels<kernels::ShortConvCuda>::get(); }

ShortConvResult cuda_short_conv(const ShortConv& given) {
  const auto in = prepared(given);
  bool gradient = false;
  for (const auto* x : {&in.x, &in.weight, &in.bias, &in.initial_state})
    gradient = gradient || requires_gradient(*x);
  if (!gradient || !c10::GradMode::is_enabled()) return run_forward(in);
  const auto out = CudaShortConvFunction::apply(
      in.x, in.weight, optional_of(in.bias), optional_of(in.initial_state), optional_of(in.starts), in.silu);
  return {out[0], out[1]};
}

at::Tensor cuda_short_conv_step(const ShortConv& given) {
  const auto in = prepared(given);
  const CudaLaunch launch(in.x);
  auto p = problem_of(in);
  const auto y = at::empty(in.x.sizes(), in.x.options());
  p.y = y.mutable_data_ptr(), p.state = in.initial_state.mutable_data_ptr();
  check_launch("short_conv_step", table().forward(p, launch.stream()));
  return y;
}

}  // namespace weft::ops
