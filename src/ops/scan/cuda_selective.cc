#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include "ops/cuda_kernels.h"
#include "ops/cuda_tensors.h"
#include "ops/recurrence.h"
#include "ops/scan/cuda.h"
#include "ops/scan/kernel_cuda_selective.h"

namespace weft::ops {
namespace {

using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

const kernels::SelectiveScanCuda& table() { return *CudaKernels<kernels::SelectiveScanCuda>::get(); }

at::Tensor floats(const at::Tensor& x) { return x.defined() ? x.to(at::kFloat).contiguous() : x; }

// Two tensors in one type that kernels read, contiguous and where vectors may be loaded.
void make_alike(at::Tensor& x, at::Tensor& y) {
  const bool alike = x.scalar_type() == y.scalar_type();
  x = aligned(alike ? in_kernel_type(x) : x.to(at::kFloat));
  y = aligned(alike ? in_kernel_type(y) : y.to(at::kFloat));
}

SelectiveScan prepared(SelectiveScan in) {
  make_alike(in.u, in.delta);
  make_alike(in.b, in.c);
  in.a = floats(in.a), in.skip = floats(in.skip), in.initial_state = floats(in.initial_state);
  if (in.starts.defined()) in.starts = in.starts.contiguous();
  return in;
}

kernels::CudaSelectiveScan problem(const SelectiveScan& in, const CudaLaunch& launch) {
  kernels::CudaSelectiveScan p;
  p.batch = in.u.size(0), p.tokens = in.u.size(1), p.channels = in.u.size(2), p.states = in.a.size(1);
  p.type = cuda_type(in.u), p.map_type = cuda_type(in.b);
  p.u = data_of(in.u), p.delta = data_of(in.delta), p.a = floats_of(in.a);
  p.b = data_of(in.b), p.c = data_of(in.c), p.skip = floats_of(in.skip),
  p.initial = floats_of(in.initial_state);
  p.starts = flags_of(in.starts);
  p.multiprocessors = launch.multiprocessors();
  return p;
}

at::Tensor empty_floats(at::IntArrayRef shape, const at::Tensor& like) {
  return at::empty(shape, like.options().dtype(at::kFloat));
}

// y, the state, which is made unless given, and with `keep` the states before each chunk.
variable_list run_forward(const SelectiveScan& in, bool keep, at::Tensor state = {}) {
  const CudaLaunch launch(in.u);
  auto p = problem(in, launch);
  const auto y = at::empty_like(in.u), scratch = empty_floats({table().scratch(p)}, in.u);
  if (!state.defined()) state = empty_floats({p.batch, p.channels, p.states}, in.u);
  constexpr int64_t kChunk = kernels::kCudaSelectiveChunk;
  at::Tensor saved;
  if (keep) saved = empty_floats({p.batch, (p.tokens + kChunk - 1) / kChunk, p.channels, p.states}, in.u);
  p.y = y.mutable_data_ptr(), p.state = mutable_floats_of(state), p.saved = mutable_floats_of(saved);
  p.segments = mutable_floats_of(scratch);
  check_launch("selective_scan", table().forward(p, launch.stream()));
  return {y, state, saved};
}

class CudaSelectiveScanFunction : public torch::autograd::Function<CudaSelectiveScanFunction> {
 public:
  static variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& u,
                               const at::Tensor& delta, const at::Tensor& a, const at::Tensor& b,
                               const at::Tensor& c, const Optional& skip, const Optional& initial,
                               const Optional& starts) {
    const SelectiveScan in{u,
                           delta,
                           a,
                           b,
                           c,
                           skip.value_or(at::Tensor()),
                           initial.value_or(at::Tensor()),
                           starts.value_or(at::Tensor())};
    const auto out = run_forward(in, true);
    ctx->save_for_backward({u, delta, a, b, c, in.skip, in.starts, out[2]});
    ctx->saved_data["initial_gradient"] = requires_gradient(in.initial_state);
    return {out[0], out[1]};
  }

  static variable_list backward(torch::autograd::AutogradContext* ctx, variable_list upstream) {
    require_first_order("selective_scan");
    const auto saved = ctx->get_saved_variables();
    const auto &u = saved[0], &skip = saved[5];
    const CudaLaunch launch(u);
    kernels::CudaSelectiveGradient g{
        .forward = problem({u, saved[1], saved[2], saved[3], saved[4], skip, {}, saved[6]}, launch)};
    auto& p = g.forward;
    p.saved = saved[7].data_ptr<float>();
    const int64_t parts = p.batch * table().segments(p);
    const auto scratch = empty_floats({table().scratch(p)}, u);
    const auto dy = aligned(upstream[0]), dstate = upstream[1].contiguous(), du = at::empty_like(u),
               ddelta = at::empty_like(u), dinitial = at::empty_like(dstate),
               da = empty_floats({parts, p.channels, p.states}, u),
               dskip = empty_floats({parts, p.channels}, u),
               maps = empty_floats({2, table().channel_blocks(p), p.batch, p.tokens, p.states}, u);
    p.segments = mutable_floats_of(scratch);
    g.dy = data_of(dy), g.dstate = floats_of(dstate), g.du = du.mutable_data_ptr(),
    g.ddelta = ddelta.mutable_data_ptr(), g.da = mutable_floats_of(da), g.dskip = mutable_floats_of(dskip),
    g.maps = mutable_floats_of(maps), g.dinitial = mutable_floats_of(dinitial);
    check_launch("selective_scan", table().backward(g, launch.stream()));
    const auto sums = maps.sum(1).to(saved[3].scalar_type());  // over the blocks of channels
    return {du,
            ddelta,
            da.sum(0),
            sums[0],
            sums[1],
            skip.defined() ? dskip.sum(0) : at::Tensor(),
            ctx->saved_data["initial_gradient"].toBool() ? dinitial : at::Tensor(),
            at::Tensor()};
  }
};

bool needs_gradient(const SelectiveScan& in) {
  bool gradient = false;
  for (const auto* x : {&in.u, &in.delta, &in.a, &in.b, &in.c, &in.skip, &in.initial_state})
    gradient = gradient || requires_gradient(*x);
  return gradient && c10::GradMode::is_enabled();
}

}  // namespace

bool has_cuda_selective_scan(const SelectiveScan& in) {
  if (!CudaKernels<kernels::SelectiveScanCuda>::get()) return false;
  if (!needs_gradient(in)) return in.a.size(1) <= kernels::kCudaSelectiveStates;
  const CudaLaunch launch(in.u);
  return in.a.size(1) <= table().gradient_states();
}

SelectiveScanResult cuda_selective_scan(const SelectiveScan& given) {
  const auto in = prepared(given);
  const auto out = needs_gradient(in) ? CudaSelectiveScanFunction::apply(
                                            in.u, in.delta, in.a, in.b, in.c, optional_of(in.skip),
                                            optional_of(in.initial_state), optional_of(in.starts))
                                      : run_forward(in, false);
  return {out[0].to(given.u.scalar_type()), out[1]};
}

SelectiveScanResult cuda_selective_scan_step(const SelectiveScan& given) {
  const auto in = prepared(given);
  const auto out = run_forward(in, false, in.initial_state);
  return {out[0].to(given.u.scalar_type()), given.initial_state};
}

}  // namespace weft::ops
