#include "ops/scan/cuda.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

#include "ops/cuda_kernels.h"
#include "ops/cuda_tensors.h"
#include "ops/recurrence.h"
#include "ops/scan/kernel_cuda.h"
#include "ops/scan/types.h"

namespace weft::ops {
namespace {

using torch::autograd::variable_list;

const kernels::ScanCuda& table() { return *CudaKernels<kernels::ScanCuda>::get(); }

// Channels must lie beside each other, and the parts of a matrix or pair in rows of channels; tokens and sequences may
// be any distance apart.
at::Tensor with_dense_rows(const at::Tensor& x) {
  int64_t stride = 1;
  for (int64_t i = x.dim() - 1; i >= std::min<int64_t>(2, x.dim() - 1); --i) {
    if (x.size(i) != 1 && x.stride(i) != stride) return x.contiguous();
    stride *= x.size(i);
  }
  return x;
}

// a and b as the kernels read them: complex64 or fp32 when the state is complex or matrices are multiplied; a is fp32 or
// of the type of b.
struct Inputs {
  at::Tensor a, b, initial, starts;
};

Inputs prepared(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial,
                const at::Tensor& starts) {
  const auto types = scan_types(a, b);
  const bool wide = b.dim() == 4 || types.state == at::kComplexFloat;
  const auto type_b = wide ? types.state : in_kernel_type(b).scalar_type();
  const auto type_a = wide || a.scalar_type() != type_b ? types.state : type_b;
  Inputs in{with_dense_rows(a.to(type_a).resolve_conj()), with_dense_rows(b.to(type_b).resolve_conj()),
            initial, starts};
  if (initial.defined()) in.initial = initial.to(types.state).resolve_conj().contiguous();
  if (starts.defined()) in.starts = starts.contiguous();
  return in;
}

kernels::CudaRows rows_of(const at::Tensor& x, bool constant) {
  kernels::CudaRows rows;
  rows.data = x.const_data_ptr(), rows.type = cuda_type(x);
  if (!constant) rows.batch = x.stride(0), rows.token = x.stride(1);
  return rows;
}

kernels::CudaScan problem(const Inputs& in, const CudaLaunch& launch) {
  kernels::CudaScan p;
  p.batch = in.b.size(0), p.tokens = in.b.size(1), p.channels = in.b.size(-1);
  p.kind = in.b.dim() == 4     ? kernels::CudaScanKind::matrix
           : in.b.is_complex() ? kernels::CudaScanKind::complex
                               : kernels::CudaScanKind::real;
  p.a = rows_of(in.a, in.a.dim() == 1), p.b = rows_of(in.b, false);
  p.initial = floats_of(in.initial), p.starts = flags_of(in.starts);
  p.multiprocessors = launch.multiprocessors(), p.capability = launch.capability();
  return p;
}

at::TensorOptions sums_like(const at::Tensor& b) {
  return b.options().dtype(b.is_complex() ? at::kComplexFloat : at::kFloat);
}

// Where segments leave what the second pass needs.
at::Tensor scratch_for(const kernels::CudaScan& p, const at::Tensor& b) {
  return at::empty({table().scratch(p)}, b.options().dtype(at::kFloat));
}

// `state`: given to be overwritten, or made.
variable_list run_forward(const Inputs& in, at::Tensor state = {}) {
  const CudaLaunch launch(in.b);
  auto p = problem(in, launch);
  if (!state.defined()) {
    auto shape = in.b.sizes().vec();
    shape.erase(shape.begin() + 1);
    state = at::empty(shape, sums_like(in.b));
  }
  const auto h = at::empty(in.b.sizes(), in.b.options());
  p.h = h.mutable_data_ptr(), p.state = mutable_floats_of(state);
  const auto scratch = scratch_for(p, in.b);
  p.segments = mutable_floats_of(scratch);
  check_launch("scan", table().forward(p, launch.stream()));
  return {h, state};
}

class CudaScanFunction : public torch::autograd::Function<CudaScanFunction> {
 public:
  static variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& a,
                               const at::Tensor& b, const std::optional<at::Tensor>& initial,
                               const std::optional<at::Tensor>& starts) {
    const Inputs in{a, b, initial.value_or(at::Tensor()), starts.value_or(at::Tensor())};
    const auto out = run_forward(in);
    ctx->save_for_backward({a, in.initial, in.starts, out[0]});
    ctx->saved_data["initial_gradient"] = requires_gradient(in.initial);
    return out;
  }

  static variable_list backward(torch::autograd::AutogradContext* ctx, variable_list upstream) {
    require_first_order("scan");
    const auto saved = ctx->get_saved_variables();
    const auto &a = saved[0], &h = saved[3];
    const CudaLaunch launch(h);
    kernels::CudaScanGradient g{.forward = problem({a, h, saved[1], saved[2]}, launch)};
    auto& p = g.forward;
    p.h = h.data_ptr();
    const auto dh = aligned(upstream[0].resolve_conj()), dstate = upstream[1].resolve_conj().contiguous(),
               db = at::empty_like(dh), scratch = scratch_for(p, h);
    const bool constant = a.dim() == 1;
    at::Tensor da, dinitial;
    if (ctx->needs_input_grad(0))
      da = constant ? at::empty({table().segments(p) * p.batch, p.channels}, sums_like(h))
                    : at::empty(a.sizes(), a.options());
    if (ctx->saved_data["initial_gradient"].toBool()) dinitial = at::empty_like(dstate);
    p.segments = mutable_floats_of(scratch);
    g.dh = dh.const_data_ptr(), g.dstate = floats_of(dstate), g.db = db.mutable_data_ptr();
    if (constant)
      g.da_sums = mutable_floats_of(da);
    else
      g.da = mutable_data_of(da);
    g.dinitial = mutable_floats_of(dinitial);
    check_launch("scan", table().backward(g, launch.stream()));
    if (da.defined() && constant) da = da.sum(0).to(a.scalar_type());
    return {da, db, dinitial, at::Tensor()};
  }
};

}  // namespace

bool has_cuda_scan() { return CudaKernels<kernels::ScanCuda>::get(); }

ScanResult cuda_scan(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial,
                     const at::Tensor& starts) {
  const auto in = prepared(a, b, initial, starts);
  const bool gradient = requires_gradient(in.a) || requires_gradient(in.b) || requires_gradient(in.initial);
  const auto out = gradient && c10::GradMode::is_enabled()
                       ? CudaScanFunction::apply(in.a, in.b, optional_of(in.initial), optional_of(in.starts))
                       : run_forward(in);
  return {out[0].to(scan_types(a, b).output), out[1]};
}

at::Tensor cuda_scan_step(const at::Tensor& a, const at::Tensor& b, const at::Tensor& state) {
  const c10::NoGradGuard no_grad;
  return run_forward(prepared(a, b, state, {}), state)[0].to(scan_types(a, b).output);
}

}  // namespace weft::ops
