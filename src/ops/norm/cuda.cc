#include "ops/norm/cuda.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/cuda_kernels.h"
#include "ops/cuda_tensors.h"
#include "ops/norm/kernel_cuda.h"
#include "ops/recurrence.h"

namespace weft::ops {
namespace {

using kernels::CudaGating;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

const kernels::NormCuda& table() { return *CudaKernels<kernels::NormCuda>::get(); }

struct Inputs {
  at::Tensor x, gate, weight, bias;
};

kernels::CudaNorm problem_of(const Inputs& in, const CudaNormKind& kind, const CudaLaunch& launch) {
  kernels::CudaNorm p;
  p.width = in.x.size(-1), p.rows = in.x.numel() / p.width;
  p.type = cuda_type(in.x), p.eps = static_cast<float>(kind.eps);
  p.centre = kind.centre, p.sum_of_squares = kind.sum;
  p.gating = kind.before ? CudaGating::before : kind.after ? CudaGating::after : CudaGating::none;
  p.x = data_of(in.x), p.x_row = row_stride(in.x);
  if (in.gate.defined()) p.gate = data_of(in.gate), p.gate_row = row_stride(in.gate);
  if (in.weight.defined()) p.weight = data_of(in.weight), p.weight_type = cuda_type(in.weight);
  if (in.bias.defined()) p.bias = data_of(in.bias), p.bias_type = cuda_type(in.bias);
  p.multiprocessors = launch.multiprocessors(), p.capability = launch.capability();
  return p;
}

at::Tensor run_forward(const Inputs& in, const CudaNormKind& kind) {
  const CudaLaunch launch(in.x);
  auto p = problem_of(in, kind, launch);
  const auto y = at::empty(in.x.sizes(), in.x.options());
  p.y = y.mutable_data_ptr();
  check_launch("norm", table().forward(p, launch.stream()));
  return y;
}

// Gradients of x, gate, weight and bias; `dsum`, if there is one, joins that of x.
variable_list run_backward(const Inputs& in, const CudaNormKind& kind, const at::Tensor& upstream,
                           bool weight_wanted, bool bias_wanted, const at::Tensor& dsum = {}) {
  const CudaLaunch launch(in.x);
  kernels::CudaNormGradient g{.forward = problem_of(in, kind, launch)};
  const auto& p = g.forward;
  const auto dy = upstream.contiguous(), more = dsum.defined() ? dsum.contiguous() : dsum;
  const auto dx = at::empty(in.x.sizes(), in.x.options());
  at::Tensor dgate, dweight, dbias, partial;
  if (in.gate.defined()) dgate = at::empty(in.x.sizes(), in.x.options());
  if (weight_wanted) dweight = at::empty_like(in.weight);
  if (bias_wanted) dbias = at::empty_like(in.bias);
  if (weight_wanted || bias_wanted)
    partial = at::empty({2, table().blocks(p), p.width}, in.x.options().dtype(at::kFloat));
  g.dy = data_of(dy), g.dsum = data_of(more), g.dx = dx.mutable_data_ptr(), g.dgate = mutable_data_of(dgate);
  g.partial = mutable_floats_of(partial), g.dweight = mutable_data_of(dweight),
  g.dbias = mutable_data_of(dbias);
  check_launch("norm", table().backward(g, launch.stream()));
  return {dx, dgate, dweight, dbias};
}

class CudaNormFunction : public torch::autograd::Function<CudaNormFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const Optional& gate,
                            const Optional& weight, const Optional& bias, bool centre, bool sum, bool before,
                            bool after, double eps) {
    const Inputs in{x, gate.value_or(at::Tensor()), weight.value_or(at::Tensor()),
                    bias.value_or(at::Tensor())};
    ctx->save_for_backward({x, in.gate, in.weight, in.bias});
    for (const auto& [name, value] :
         {std::pair{"centre", centre}, {"sum", sum}, {"before", before}, {"after", after}})
      ctx->saved_data[name] = value;
    ctx->saved_data["eps"] = eps;
    return run_forward(in, {centre, sum, before, after, eps});
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    require_first_order("norm");
    const auto& data = ctx->saved_data;
    const CudaNormKind kind{data.at("centre").toBool(), data.at("sum").toBool(), data.at("before").toBool(),
                            data.at("after").toBool(), data.at("eps").toDouble()};
    const auto saved = ctx->get_saved_variables();
    const Inputs in{saved[0], saved[1], saved[2], saved[3]};
    size_t edge = in.gate.defined() ? 2 : 1;  // only the tensors that are there have an edge
    const bool weight_wanted = in.weight.defined() && ctx->needs_input_grad(edge++);
    const bool bias_wanted = in.bias.defined() && ctx->needs_input_grad(edge);
    auto gradients = run_backward(in, kind, upstream[0], weight_wanted, bias_wanted);
    gradients.resize(9);
    return gradients;
  }
};

// The sum, in the type of x, and its norm. x and residual contiguous; the type of x holds that of the residual.
variable_list run_add_forward(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                              double eps) {
  const CudaLaunch launch(x);
  auto p = problem_of({x, {}, weight, {}}, {.eps = eps}, launch);
  const auto sum = at::empty(x.sizes(), x.options()), y = at::empty(x.sizes(), x.options());
  p.added = data_of(residual), p.added_type = cuda_type(residual);
  p.sum = sum.mutable_data_ptr(), p.y = y.mutable_data_ptr();
  check_launch("add_rms_norm", table().forward(p, launch.stream()));
  return {sum, y};
}

class CudaAddNormFunction : public torch::autograd::Function<CudaAddNormFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& residual,
                               const Optional& weight, double eps) {
    const auto out = run_add_forward(x, residual, weight.value_or(at::Tensor()), eps);
    ctx->save_for_backward({out[0], weight.value_or(at::Tensor())});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["residual_type"] = static_cast<int64_t>(residual.scalar_type());
    ctx->set_materialize_grads(false);
    return out;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    require_first_order("add_rms_norm");
    const auto saved = ctx->get_saved_variables();
    const bool weight_wanted = saved[1].defined() && ctx->needs_input_grad(2);
    at::Tensor dsum = upstream[0], dweight;
    if (upstream[1].defined()) {
      const auto gradients =
          run_backward({saved[0], {}, saved[1], {}}, {.eps = ctx->saved_data["eps"].toDouble()}, upstream[1],
                       weight_wanted, false, dsum);
      dsum = gradients[0], dweight = gradients[2];
    }
    const auto type = static_cast<at::ScalarType>(ctx->saved_data["residual_type"].toInt());
    return {dsum, dsum.defined() ? dsum.to(type) : dsum, dweight, {}};
  }
};

at::Tensor weight_of(const at::Tensor& x) { return x.defined() ? in_kernel_type(x).contiguous() : x; }

}  // namespace

bool has_cuda_norm(const at::Tensor& x, const at::Tensor& other, const at::Tensor& weight,
                   const at::Tensor& bias) {
  if (choose_kernel(x) != Kernel::cuda || !CudaKernels<kernels::NormCuda>::get()) return false;
  for (const auto* t : {&other, &weight, &bias})
    if (t->defined() && t->scalar_type() == at::kDouble) return false;
  return x.size(-1) <= kernels::kCudaNormWidth;
}

at::Tensor cuda_norm(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& weight,
                     const at::Tensor& bias, const CudaNormKind& kind) {
  const auto open = gate.defined() ? with_rows(gate.to(x.scalar_type())) : gate;
  return CudaNormFunction::apply(with_rows(x), optional_of(open), optional_of(weight_of(weight)),
                                 optional_of(weight_of(bias)), kind.centre, kind.sum, kind.before, kind.after,
                                 kind.eps);
}

AddNormResult cuda_add_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                                double eps) {
  const auto type = at::promote_types(x.scalar_type(), residual.scalar_type());
  const bool swapped = x.scalar_type() != type;
  const auto wide = (swapped ? residual : x).to(type).contiguous(),
             other = (swapped ? x : residual).contiguous();
  const auto out = CudaAddNormFunction::apply(wide, other, optional_of(weight_of(weight)), eps);
  return {out[0], out[1]};
}

}  // namespace weft::ops
