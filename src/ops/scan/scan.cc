#include "ops/scan/scan.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/parallel.h"
#include "ops/recurrence.h"
#include "ops/scan/kernel.h"
#include "ops/scan/types.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

void check_scan(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial,
                const at::Tensor& starts) {
  require_like("scan", "b", b, b);
  require_like("scan", "a", a, b);
  require_shape("scan", "b", b, {-1, -1, -1});
  const int64_t batch = b.size(0), tokens = b.size(1), channels = b.size(2);
  if (a.dim() != 1 || a.size(0) != channels) require_shape("scan", "a", a, {batch, tokens, channels});
  if (initial.defined()) {
    require_like("scan", "initial", initial, b);
    require_shape("scan", "initial", initial, {batch, channels});
    require(a.is_complex() || b.is_complex() || !initial.is_complex(),
            "scan: initial is complex, but a and b are real; make one of them complex");
  }
  check_starts("scan", starts, b, batch, tokens);
}

const float* floats(const at::Tensor& x) {
  return x.defined() ? static_cast<const float*>(x.const_data_ptr()) : nullptr;
}

// a, b, initial in the state's type and contiguous.
kernels::ScanProblem problem(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial,
                             const at::Tensor& starts) {
  kernels::ScanProblem p;
  p.batch = b.size(0);
  p.tokens = b.size(1);
  p.channels = b.size(2);
  p.complex = b.is_complex();
  p.constant = a.dim() == 1;
  p.a = floats(a);
  p.initial = floats(initial);
  p.starts = starts.defined() ? starts.const_data_ptr<bool>() : nullptr;
  return p;
}

int64_t grain(const kernels::ScanProblem& p) { return 1 + 16384 / (1 + p.tokens * kernels::kScanBlock); }

class ScanFunction : public torch::autograd::Function<ScanFunction> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& a,
                                                const at::Tensor& b,
                                                const std::optional<at::Tensor>& optional_initial,
                                                const std::optional<at::Tensor>& optional_starts,
                                                int64_t isa) {
    const auto initial = optional_initial.value_or(at::Tensor()),
               starts = optional_starts.value_or(at::Tensor());
    auto p = problem(a, b, initial, starts);
    const auto h = at::empty_like(b), state = at::empty({p.batch, p.channels}, b.options());
    p.b = floats(b);
    p.h = static_cast<float*>(h.mutable_data_ptr());
    p.state = static_cast<float*>(state.mutable_data_ptr());
    parallel_for(p.batch * kernels::scan_blocks(p.channels), grain(p), [&](int64_t begin, int64_t end) {
      kernels::scan_forward(static_cast<simd::Isa>(isa), p, begin, end);
    });
    ctx->save_for_backward({a, initial, starts, h});
    ctx->saved_data["isa"] = isa;
    ctx->saved_data["initial_gradient"] = requires_gradient(initial);
    return {h, state};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list upstream) {
    require_first_order("scan");
    const auto saved = ctx->get_saved_variables();
    const auto &a = saved[0], initial = saved[1], starts = saved[2], h = saved[3];
    kernels::ScanGradient g{.forward = problem(a, h, initial, starts)};
    const auto& p = g.forward;
    const auto dh = upstream[0].contiguous(), dstate = upstream[1].contiguous(), db = at::empty_like(h);
    at::Tensor da, dinitial;
    if (ctx->needs_input_grad(0)) da = at::empty(p.constant ? dstate.sizes() : h.sizes(), h.options());
    if (ctx->saved_data["initial_gradient"].toBool()) dinitial = at::empty(dstate.sizes(), h.options());
    g.forward.h = static_cast<float*>(h.data_ptr());
    g.dh = floats(dh);
    g.dstate = floats(dstate);
    g.db = static_cast<float*>(db.mutable_data_ptr());
    g.da = da.defined() ? static_cast<float*>(da.mutable_data_ptr()) : nullptr;
    g.dinitial = dinitial.defined() ? static_cast<float*>(dinitial.mutable_data_ptr()) : nullptr;
    const auto isa = static_cast<simd::Isa>(ctx->saved_data["isa"].toInt());
    parallel_for(p.batch * kernels::scan_blocks(p.channels), grain(p),
                 [&](int64_t begin, int64_t end) { kernels::scan_backward(isa, g, begin, end); });
    if (da.defined() && p.constant) da = da.sum(0);
    return {da, db, dinitial, at::Tensor(), at::Tensor()};
  }
};

}  // namespace

ScanResult scan(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial,
                const at::Tensor& starts) {
  check_scan(a, b, initial, starts);
  const auto types = scan_types(a, b);
  const auto kernel =
      choose_kernel(b.device().type(), types.state == at::kComplexFloat ? at::kFloat : types.state);
  if (!is_cpu_kernel(kernel)) return reference::scan(a, b, initial, starts);
  const auto prepared = [&](const at::Tensor& x) { return x.defined() ? x.to(types.state).contiguous() : x; };
  const auto result = ScanFunction::apply(prepared(a), prepared(b), optional_of(prepared(initial)),
                                          optional_of(starts.defined() ? starts.contiguous() : starts),
                                          static_cast<int64_t>(isa_of(kernel)));
  return {result[0].to(types.output), result[1]};
}

namespace {

std::tuple<at::Tensor, at::Tensor> scan_operator(const at::Tensor& a, const at::Tensor& b,
                                                 const std::optional<at::Tensor>& initial,
                                                 const std::optional<at::Tensor>& starts) {
  const auto result = scan(a, b, initial.value_or(at::Tensor()), starts.value_or(at::Tensor()));
  return {result.h, result.state};
}

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def("scan(Tensor a, Tensor b, Tensor? initial=None, Tensor? starts=None) -> (Tensor h, Tensor state)",
        scan_operator);
}

}  // namespace
}  // namespace weft::ops
