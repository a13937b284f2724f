#include "ops/activation/cuda.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/activation/kernel_cuda.h"
#include "ops/cuda_kernels.h"
#include "ops/cuda_tensors.h"
#include "ops/recurrence.h"

namespace weft::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

const kernels::ActivationCuda& table() { return *CudaKernels<kernels::ActivationCuda>::get(); }

// Both of one type, with evenly spaced rows.
kernels::CudaSiluMul problem_of(const at::Tensor& gate, const at::Tensor& x) {
  kernels::CudaSiluMul p;
  p.type = cuda_type(x), p.gate = data_of(gate), p.x = data_of(x);
  p.rows = 1, p.width = x.numel();
  if (x.dim() == 0 || x.numel() == 0 || (gate.is_contiguous() && x.is_contiguous())) return p;
  p.width = x.size(-1), p.rows = x.numel() / p.width;
  p.gate_row = row_stride(gate), p.x_row = row_stride(x);
  return p;
}

at::Tensor run_forward(const at::Tensor& gate, const at::Tensor& x) {
  const CudaLaunch launch(x);
  auto p = problem_of(gate, x);
  const auto y = at::empty(x.sizes(), x.options());
  p.y = y.mutable_data_ptr();
  check_launch("silu_mul", table().silu_mul_forward(p, launch.stream()));
  return y;
}

class CudaSiluMulFunction : public torch::autograd::Function<CudaSiluMulFunction> {
 public:
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate, const at::Tensor& x) {
    ctx->save_for_backward({gate, x});
    return run_forward(gate, x);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    require_first_order("silu_mul");
    const auto saved = ctx->get_saved_variables();
    const auto& x = saved[1];
    const CudaLaunch launch(x);
    auto p = problem_of(saved[0], x);
    const auto dy = upstream[0].contiguous(), dgate = at::empty(x.sizes(), x.options()),
               dx = at::empty(x.sizes(), x.options());
    p.dy = data_of(dy), p.dgate = dgate.mutable_data_ptr(), p.dx = dx.mutable_data_ptr();
    check_launch("silu_mul", table().silu_mul_backward(p, launch.stream()));
    return {dgate, dx};
  }
};

}  // namespace

bool has_cuda_silu_mul(const at::Tensor& gate, const at::Tensor& x) {
  return choose_kernel(x) == Kernel::cuda && gate.scalar_type() != at::kDouble &&
         CudaKernels<kernels::ActivationCuda>::get();
}

at::Tensor cuda_silu_mul(const at::Tensor& gate, const at::Tensor& x) {
  const auto type = at::promote_types(gate.scalar_type(), x.scalar_type());
  const auto ready = [&](const at::Tensor& t) {
    const auto typed = t.to(type);
    return typed.dim() == 0 ? typed : with_rows(typed);
  };
  return CudaSiluMulFunction::apply(ready(gate), ready(x));
}

}  // namespace weft::ops
