#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/cuda_kernels.h"
#include "ops/cuda_tensors.h"
#include "ops/recurrence.h"
#include "ops/scan/cuda.h"
#include "ops/scan/kernel_cuda_wkv.h"

namespace weft::ops {
namespace {

using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

const kernels::WkvCuda& table() { return *CudaKernels<kernels::WkvCuda>::get(); }

at::Tensor floats(const at::Tensor& x) { return x.defined() ? x.to(at::kFloat).contiguous() : x; }

// k and v in one type that kernels read, everything contiguous.
Wkv prepared(const Wkv& in) {
  const auto type =
      in.k.scalar_type() == in.v.scalar_type() ? in_kernel_type(in.v).scalar_type() : at::kFloat;
  return {in.k.to(type).contiguous(), in.v.to(type).contiguous(),
          floats(in.log_decay),       floats(in.bonus),
          floats(in.initial_state),   in.starts.defined() ? in.starts.contiguous() : in.starts};
}

kernels::CudaWkv problem(const Wkv& in) {
  kernels::CudaWkv p;
  p.batch = in.v.size(0), p.tokens = in.v.size(1), p.channels = in.v.size(2), p.type = cuda_type(in.v);
  p.k = data_of(in.k), p.v = data_of(in.v), p.w = floats_of(in.log_decay), p.u = floats_of(in.bonus);
  p.initial = floats_of(in.initial_state), p.starts = flags_of(in.starts);
  return p;
}

// y, the state and, when `keep`, the states before each chunk.
variable_list run_forward(const Wkv& in, bool keep) {
  const CudaLaunch launch(in.v);
  auto p = problem(in);
  const auto options = in.v.options().dtype(at::kFloat);
  const auto y = at::empty_like(in.v), state = at::empty({p.batch, 3, p.channels}, options);
  constexpr int64_t kChunk = kernels::kCudaWkvChunk;
  at::Tensor saved;
  if (keep) saved = at::empty({p.batch, (p.tokens + kChunk - 1) / kChunk, 3, p.channels}, options);
  p.y = y.mutable_data_ptr(), p.state = mutable_floats_of(state), p.saved = mutable_floats_of(saved);
  check_launch("wkv", table().forward(p, launch.stream()));
  return {y, state, saved};
}

class CudaWkvFunction : public torch::autograd::Function<CudaWkvFunction> {
 public:
  static variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& k,
                               const at::Tensor& v, const at::Tensor& w, const at::Tensor& u,
                               const Optional& initial, const Optional& starts) {
    const Wkv in{k, v, w, u, initial.value_or(at::Tensor()), starts.value_or(at::Tensor())};
    const auto out = run_forward(in, true);
    ctx->save_for_backward({k, v, w, u, in.initial_state, in.starts, out[1], out[2]});
    return {out[0], out[1]};
  }

  static variable_list backward(torch::autograd::AutogradContext* ctx, variable_list upstream) {
    require_first_order("wkv");
    const auto x = ctx->get_saved_variables();
    const CudaLaunch launch(x[1]);
    kernels::CudaWkvGradient g{.forward = problem({x[0], x[1], x[2], x[3], x[4], x[5]})};
    auto& p = g.forward;
    p.state = x[6].data_ptr<float>(), p.saved = x[7].data_ptr<float>();
    const auto dy = upstream[0].contiguous(), dstate = upstream[1].contiguous();
    const auto dk = at::empty_like(x[0]), dv = at::empty_like(x[1]), dinitial = at::empty_like(dstate);
    const auto dw = at::empty({p.batch, p.channels}, dstate.options()), du = at::empty_like(dw);
    g.dy = data_of(dy), g.dstate = floats_of(dstate), g.dk = dk.mutable_data_ptr(),
    g.dv = dv.mutable_data_ptr();
    g.dw = mutable_floats_of(dw), g.du = mutable_floats_of(du), g.dinitial = mutable_floats_of(dinitial);
    check_launch("wkv", table().backward(g, launch.stream()));
    return {dk, dv, dw.sum(0), du.sum(0), x[4].defined() ? dinitial : at::Tensor(), at::Tensor()};
  }
};

}  // namespace

bool has_cuda_wkv() { return CudaKernels<kernels::WkvCuda>::get(); }

WkvResult cuda_wkv(const Wkv& given) {
  const auto in = prepared(given);
  bool gradient = false;
  for (const auto* x : {&in.k, &in.v, &in.log_decay, &in.bonus, &in.initial_state})
    gradient = gradient || requires_gradient(*x);
  const auto out = gradient && c10::GradMode::is_enabled()
                       ? CudaWkvFunction::apply(in.k, in.v, in.log_decay, in.bonus,
                                                optional_of(in.initial_state), optional_of(in.starts))
                       : run_forward(in, false);
  return {out[0].to(given.v.scalar_type()), out[1]};
}

}  // namespace weft::ops
