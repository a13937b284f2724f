#include "ops/scan/wkv.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/parallel.h"
#include "ops/recurrence.h"
#include "ops/scan/cuda.h"
#include "ops/scan/kernel_wkv.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

using torch::autograd::variable_list;

void check_wkv(const Wkv& in) {
  require_like("wkv", "v", in.v, in.v);
  require_shape("wkv", "v", in.v, {-1, -1, -1});
  const int64_t batch = in.v.size(0), tokens = in.v.size(1), channels = in.v.size(2);
  require_like("wkv", "k", in.k, in.v);
  require_shape("wkv", "k", in.k, {batch, tokens, channels});
  require_like("wkv", "log_decay", in.log_decay, in.v);
  require_shape("wkv", "log_decay", in.log_decay, {channels});
  require_like("wkv", "bonus", in.bonus, in.v);
  require_shape("wkv", "bonus", in.bonus, {channels});
  if (in.initial_state.defined()) {
    require_like("wkv", "initial_state", in.initial_state, in.v);
    require_shape("wkv", "initial_state", in.initial_state, {batch, 3, channels});
  }
  check_starts("wkv", in.starts, in.v, batch, tokens);
}

const float* floats(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }

// All tensors contiguous fp32.
kernels::WkvProblem problem(const at::Tensor& k, const at::Tensor& v, const at::Tensor& w,
                            const at::Tensor& u, const at::Tensor& initial, const at::Tensor& starts) {
  kernels::WkvProblem p;
  p.batch = v.size(0), p.tokens = v.size(1), p.channels = v.size(2);
  p.k = floats(k), p.v = floats(v), p.w = floats(w), p.u = floats(u), p.initial = floats(initial);
  p.starts = starts.defined() ? starts.const_data_ptr<bool>() : nullptr;
  return p;
}

template <class Body>
void for_tasks(const kernels::WkvProblem& p, const Body& body) {
  const int64_t grain = 1 + 4096 / (1 + p.tokens * kernels::kScanBlock);
  parallel_for(p.batch * kernels::scan_tasks(p.channels), grain, body);
}

// y, state and, when `keep`, the states before each token.
variable_list run_forward(kernels::WkvProblem p, const at::Tensor& v, simd::Isa isa, bool keep) {
  const auto y = at::empty_like(v), state = at::empty({p.batch, 3, p.channels}, v.options());
  const auto saved = keep ? at::empty({p.batch, p.tokens, 3, p.channels}, v.options()) : at::Tensor();
  p.y = y.mutable_data_ptr<float>(), p.state = state.mutable_data_ptr<float>();
  p.saved = keep ? saved.mutable_data_ptr<float>() : nullptr;
  for_tasks(p, [&](int64_t begin, int64_t end) { kernels::wkv_forward(isa, p, begin, end); });
  return {y, state, saved};
}

class WkvFunction : public torch::autograd::Function<WkvFunction> {
 public:
  static variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& k,
                               const at::Tensor& v, const at::Tensor& w, const at::Tensor& u,
                               const std::optional<at::Tensor>& optional_initial,
                               const std::optional<at::Tensor>& optional_starts, int64_t isa) {
    const auto initial = optional_initial.value_or(at::Tensor()),
               starts = optional_starts.value_or(at::Tensor());
    const auto out = run_forward(problem(k, v, w, u, initial, starts), v, static_cast<simd::Isa>(isa), true);
    ctx->save_for_backward({k, v, w, u, initial, starts, out[1], out[2]});
    ctx->saved_data["isa"] = isa;
    return {out[0], out[1]};
  }

  static variable_list backward(torch::autograd::AutogradContext* ctx, variable_list upstream) {
    require_first_order("wkv");
    const auto x = ctx->get_saved_variables();
    kernels::WkvGradient g{.forward = problem(x[0], x[1], x[2], x[3], x[4], x[5])};
    auto& p = g.forward;
    p.state = x[6].data_ptr<float>(), p.saved = x[7].data_ptr<float>();
    const auto dy = upstream[0].contiguous(), dstate = upstream[1].contiguous();
    const auto dk = at::empty_like(x[0]), dv = at::empty_like(x[1]), dinitial = at::empty_like(dstate);
    const auto dw = at::empty({p.batch, p.channels}, dy.options()), du = at::empty_like(dw);
    g.dy = floats(dy), g.dstate = floats(dstate);
    g.dk = dk.mutable_data_ptr<float>(), g.dv = dv.mutable_data_ptr<float>();
    g.dw = dw.mutable_data_ptr<float>(), g.du = du.mutable_data_ptr<float>();
    g.dinitial = dinitial.mutable_data_ptr<float>();
    const auto isa = static_cast<simd::Isa>(ctx->saved_data["isa"].toInt());
    for_tasks(p, [&](int64_t begin, int64_t end) { kernels::wkv_backward(isa, g, begin, end); });
    return {dk,           dv,          dw.sum(0), du.sum(0), x[4].defined() ? dinitial : at::Tensor(),
            at::Tensor(), at::Tensor()};
  }
};

std::tuple<at::Tensor, at::Tensor> wkv_operator(const at::Tensor& k, const at::Tensor& v,
                                                const at::Tensor& log_decay, const at::Tensor& bonus,
                                                const std::optional<at::Tensor>& initial_state,
                                                const std::optional<at::Tensor>& starts) {
  const auto result =
      wkv({k, v, log_decay, bonus, initial_state.value_or(at::Tensor()), starts.value_or(at::Tensor())});
  return {result.y, result.state};
}

}  // namespace

WkvResult wkv(const Wkv& in) {
  check_wkv(in);
  const auto kernel = choose_kernel(in.v);
  if (kernel == Kernel::cuda && has_cuda_wkv()) return cuda_wkv(in);
  if (!is_cpu_kernel(kernel)) return reference::wkv(in);
  const auto ready = [](const at::Tensor& x) { return x.defined() ? x.to(at::kFloat).contiguous() : x; };
  const auto k = ready(in.k), v = ready(in.v), w = ready(in.log_decay), u = ready(in.bonus),
             initial = ready(in.initial_state);
  const auto starts = in.starts.defined() ? in.starts.contiguous() : in.starts;
  bool gradient = false;
  for (const auto* x : {&k, &v, &w, &u, &initial}) gradient = gradient || requires_gradient(*x);
  const auto out = gradient && c10::GradMode::is_enabled()
                       ? WkvFunction::apply(k, v, w, u, optional_of(initial), optional_of(starts),
                                            static_cast<int64_t>(isa_of(kernel)))
                       : run_forward(problem(k, v, w, u, initial, starts), v, isa_of(kernel), false);
  return {out[0].to(in.v.scalar_type()), out[1]};
}

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def(
      "wkv(Tensor k, Tensor v, Tensor log_decay, Tensor bonus, Tensor? initial_state=None, Tensor? "
      "starts=None) -> "
      "(Tensor y, Tensor state)",
      wkv_operator);
}

}  // namespace weft::ops
