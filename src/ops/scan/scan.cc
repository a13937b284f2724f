#include "ops/scan/scan.h"

#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/parallel.h"
#include "ops/recurrence.h"
#include "ops/scan/cuda.h"
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

void check_matrix_scan(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial,
                       const at::Tensor& starts) {
  require_like("matrix_scan", "b", b, b);
  require_like("matrix_scan", "a", a, b);
  require_shape("matrix_scan", "b", b, {-1, -1, 2, -1});
  require_shape("matrix_scan", "a", a, {b.size(0), b.size(1), 2, 2, b.size(3)});
  if (initial.defined()) {
    require_like("matrix_scan", "initial", initial, b);
    require_shape("matrix_scan", "initial", initial, {b.size(0), 2, b.size(3)});
  }
  for (const auto& [name, x] : {std::pair{"a", a}, {"b", b}, {"initial", initial}})
    require(!x.defined() || !x.is_complex(), "matrix_scan: {} is complex, expected real numbers", name);
  check_starts("matrix_scan", starts, b, b.size(0), b.size(1));
}

// a, b, initial in the state's type and contiguous.
kernels::ScanProblem problem(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial,
                             const at::Tensor& starts) {
  kernels::ScanProblem p;
  p.batch = b.size(0);
  p.tokens = b.size(1);
  p.channels = b.size(-1);
  p.kind = b.dim() == 4     ? kernels::ScanKind::matrix
           : b.is_complex() ? kernels::ScanKind::complex
                            : kernels::ScanKind::real;
  p.constant = a.dim() == 1;
  p.a = floats(a);
  p.initial = floats(initial);
  p.starts = starts.defined() ? starts.const_data_ptr<bool>() : nullptr;
  return p;
}

// Calls body(begin, end) on parts of the tasks in parallel.
template <class Body>
void for_tasks(const kernels::ScanProblem& p, const Body& body) {
  const int64_t grain = 1 + 16384 / (1 + p.tokens * kernels::kScanBlock);
  parallel_for(p.batch * kernels::scan_tasks(p.channels), grain, body);
}

void run_forward(simd::Isa isa, const kernels::ScanProblem& p) {
  const auto kernel =
      p.kind == kernels::ScanKind::matrix ? kernels::matrix_scan_forward : kernels::scan_forward;
  for_tasks(p, [&](int64_t begin, int64_t end) { kernel(isa, p, begin, end); });
}

void run_backward(simd::Isa isa, const kernels::ScanGradient& g) {
  const auto kernel =
      g.forward.kind == kernels::ScanKind::matrix ? kernels::matrix_scan_backward : kernels::scan_backward;
  for_tasks(g.forward, [&](int64_t begin, int64_t end) { kernel(isa, g, begin, end); });
}

// Sizes of the state: those of b without the tokens.
std::vector<int64_t> state_shape(const at::Tensor& b) {
  auto shape = b.sizes().vec();
  shape.erase(shape.begin() + 1);
  return shape;
}

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
    const auto h = at::empty_like(b), state = at::empty(state_shape(b), b.options());
    p.b = floats(b);
    p.h = static_cast<float*>(h.mutable_data_ptr());
    p.state = static_cast<float*>(state.mutable_data_ptr());
    run_forward(static_cast<simd::Isa>(isa), p);
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
    // The gradient of a conjugate is a lazy one.
    const auto dh = upstream[0].resolve_conj().contiguous(), dstate = upstream[1].resolve_conj().contiguous(),
               db = at::empty_like(h);
    at::Tensor da, dinitial;
    if (ctx->needs_input_grad(0)) da = at::empty(p.constant ? dstate.sizes() : a.sizes(), h.options());
    if (ctx->saved_data["initial_gradient"].toBool()) dinitial = at::empty(dstate.sizes(), h.options());
    g.forward.h = static_cast<float*>(h.data_ptr());
    g.dh = floats(dh);
    g.dstate = floats(dstate);
    g.db = static_cast<float*>(db.mutable_data_ptr());
    g.da = da.defined() ? static_cast<float*>(da.mutable_data_ptr()) : nullptr;
    g.dinitial = dinitial.defined() ? static_cast<float*>(dinitial.mutable_data_ptr()) : nullptr;
    run_backward(static_cast<simd::Isa>(ctx->saved_data["isa"].toInt()), g);
    if (da.defined() && p.constant) da = da.sum(0);
    return {da, db, dinitial, at::Tensor(), at::Tensor()};
  }
};

ScanResult apply(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial,
                 const at::Tensor& starts, simd::Isa isa) {
  const auto types = scan_types(a, b);
  const auto prepared = [&](const at::Tensor& x) {
    return x.defined() ? x.to(types.state).resolve_conj().contiguous() : x;
  };
  const auto result = ScanFunction::apply(prepared(a), prepared(b), optional_of(prepared(initial)),
                                          optional_of(starts.defined() ? starts.contiguous() : starts),
                                          static_cast<int64_t>(isa));
  return {result[0].to(types.output), result[1]};
}

Kernel kernel_for(const at::Tensor& a, const at::Tensor& b) {
  const auto type = scan_types(a, b).state;
  return choose_kernel(b.device().type(), type == at::kComplexFloat ? at::kFloat : type);
}

// One token in place; a and b have a token dimension of 1.
template <class Reference>
at::Tensor step(const char* op, const at::Tensor& a, const at::Tensor& b, const at::Tensor& state,
                const Reference& reference) {
  const auto types = scan_types(a, b);
  require(state.defined() && state.scalar_type() == types.state && state.is_contiguous(),
          "{}: state is {} {}, expected contiguous {}", op, state.defined() ? shape_text(state) : "missing",
          state.defined() ? c10::toString(state.scalar_type()) : "", c10::toString(types.state));
  const auto kernel = kernel_for(a, b);
  if (kernel == Kernel::cuda && has_cuda_scan()) return cuda_scan_step(a, b, state);
  if (!is_cpu_kernel(kernel)) {
    const auto result = reference(a, b, state, at::Tensor());
    state.copy_(result.state);
    return result.h;
  }
  const auto wide_a = a.to(types.state).resolve_conj().contiguous(),
             wide_b = b.to(types.state).resolve_conj().contiguous();
  auto p = problem(wide_a, wide_b, state, {});
  const auto h = at::empty_like(wide_b);
  p.b = floats(wide_b);
  p.h = static_cast<float*>(h.mutable_data_ptr());
  p.state = static_cast<float*>(state.mutable_data_ptr());
  run_forward(isa_of(kernel), p);
  return h.to(types.output);
}

}  // namespace

ScanResult scan(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial,
                const at::Tensor& starts) {
  check_scan(a, b, initial, starts);
  const auto kernel = kernel_for(a, b);
  if (kernel == Kernel::cuda && has_cuda_scan()) return cuda_scan(a, b, initial, starts);
  if (!is_cpu_kernel(kernel)) return reference::scan(a, b, initial, starts);
  return apply(a, b, initial, starts, isa_of(kernel));
}

ScanResult matrix_scan(const at::Tensor& a, const at::Tensor& b, const at::Tensor& initial,
                       const at::Tensor& starts) {
  check_matrix_scan(a, b, initial, starts);
  const auto kernel = kernel_for(a, b);
  if (kernel == Kernel::cuda && has_cuda_scan()) return cuda_scan(a, b, initial, starts);
  if (!is_cpu_kernel(kernel)) return reference::matrix_scan(a, b, initial, starts);
  return apply(a, b, initial, starts, isa_of(kernel));
}

at::Tensor scan_step(const at::Tensor& a, const at::Tensor& b, const at::Tensor& state) {
  check_scan(a, b, state, {});
  require(b.size(1) == 1, "scan_step: b is {}, expected one token", shape_text(b));
  return step("scan_step", a, b, state, reference::scan);
}

at::Tensor matrix_scan_step(const at::Tensor& a, const at::Tensor& b, const at::Tensor& state) {
  check_matrix_scan(a, b, state, {});
  require(b.size(1) == 1, "matrix_scan_step: b is {}, expected one token", shape_text(b));
  return step("matrix_scan_step", a, b, state, reference::matrix_scan);
}

namespace {

template <ScanResult (*op)(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&)>
std::tuple<at::Tensor, at::Tensor> as_operator(const at::Tensor& a, const at::Tensor& b,
                                               const std::optional<at::Tensor>& initial,
                                               const std::optional<at::Tensor>& starts) {
  const auto result = op(a, b, initial.value_or(at::Tensor()), starts.value_or(at::Tensor()));
  return {result.h, result.state};
}

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def("scan(Tensor a, Tensor b, Tensor? initial=None, Tensor? starts=None) -> (Tensor h, Tensor state)",
        as_operator<scan>);
  m.def(
      "matrix_scan(Tensor a, Tensor b, Tensor? initial=None, Tensor? starts=None) -> (Tensor h, Tensor "
      "state)",
      as_operator<matrix_scan>);
  m.def("scan_step(Tensor a, Tensor b, Tensor(a!) state) -> Tensor", scan_step);
  m.def("matrix_scan_step(Tensor a, Tensor b, Tensor(a!) state) -> Tensor", matrix_scan_step);
}

}  // namespace
}  // namespace weft::ops
