#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/parallel.h"
#include "ops/recurrence.h"
#include "ops/scan/cuda.h"
#include "ops/scan/kernel.h"
#include "ops/scan/scan.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

constexpr double kLn2 = 0.693147180559945309;

void check_selective(const char* op, const SelectiveScan& in) {
  require_like(op, "u", in.u, in.u);
  require_shape(op, "u", in.u, {-1, -1, -1});
  const int64_t batch = in.u.size(0), tokens = in.u.size(1), channels = in.u.size(2);
  const auto check = [&](const char* name, const at::Tensor& x, at::IntArrayRef shape) {
    require_like(op, name, x, in.u);
    require(!x.is_complex(), "{}: {} is complex, expected a real type", op, name);
    require_shape(op, name, x, shape);
  };
  check("u", in.u, {-1, -1, -1});
  check("delta", in.delta, {batch, tokens, channels});
  check("a", in.a, {channels, -1});
  const int64_t states = in.a.size(1);
  require(states >= 1, "{}: a is {}, expected at least one state", op, shape_text(in.a));
  check("b", in.b, {batch, tokens, states});
  check("c", in.c, {batch, tokens, states});
  if (in.skip.defined()) check("skip", in.skip, {channels});
  if (in.initial_state.defined()) check("initial_state", in.initial_state, {batch, channels, states});
  check_starts(op, in.starts, in.u, batch, tokens);
}

const float* floats(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }

// Everything fp32 and contiguous; a is [N, E] and divided by ln 2.
kernels::SelectiveScanProblem problem(const SelectiveScan& in, const at::Tensor& a_log2) {
  kernels::SelectiveScanProblem p;
  p.batch = in.u.size(0);
  p.tokens = in.u.size(1);
  p.channels = in.u.size(2);
  p.states = in.b.size(2);
  p.u = floats(in.u);
  p.delta = floats(in.delta);
  p.a_log2 = floats(a_log2);
  p.b = floats(in.b);
  p.c = floats(in.c);
  p.skip = floats(in.skip);
  p.initial = floats(in.initial_state);
  p.starts = in.starts.defined() ? in.starts.const_data_ptr<bool>() : nullptr;
  return p;
}

int64_t tasks(const kernels::SelectiveScanProblem& p) { return p.batch * kernels::scan_tasks(p.channels); }

// Tasks that are worth a thread.
int64_t grain(const kernels::SelectiveScanProblem& p) {
  return 1 + 16384 / (1 + p.tokens * kernels::kScanBlock * p.states);
}

class SelectiveScanFunction : public torch::autograd::Function<SelectiveScanFunction> {
 public:
  // keep: a backward pass may follow
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& u,
                                                const at::Tensor& delta, const at::Tensor& a,
                                                const at::Tensor& b, const at::Tensor& c,
                                                const std::optional<at::Tensor>& optional_skip,
                                                const std::optional<at::Tensor>& optional_initial,
                                                const std::optional<at::Tensor>& optional_starts, bool keep,
                                                int64_t isa) {
    const auto skip = optional_skip.value_or(at::Tensor()), initial = optional_initial.value_or(at::Tensor()),
               starts = optional_starts.value_or(at::Tensor());
    const auto a_log2 = (a.t() / kLn2).contiguous();
    auto p = problem({u, delta, a, b, c, skip, initial, starts}, a_log2);
    const auto y = at::empty_like(u), state = at::empty({p.batch, p.channels, p.states}, u.options());
    at::Tensor chunk_states;
    if (keep) {
      chunk_states =
          at::empty({p.batch, kernels::selective_chunks(p.tokens), p.states, p.channels}, u.options());
      p.saved = chunk_states.mutable_data_ptr<float>();
    }
    p.y = y.mutable_data_ptr<float>();
    p.state = state.mutable_data_ptr<float>();
    parallel_for(tasks(p), grain(p), [&](int64_t begin, int64_t end) {
      kernels::selective_scan_forward(static_cast<simd::Isa>(isa), p, begin, end);
    });
    if (keep) ctx->save_for_backward({u, delta, a_log2, b, c, skip, starts, chunk_states});
    ctx->saved_data["isa"] = isa;
    ctx->saved_data["initial_gradient"] = requires_gradient(initial);
    return {y, state};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list upstream) {
    require_first_order("selective_scan");
    const auto saved = ctx->get_saved_variables();
    const auto &u = saved[0], &a_log2 = saved[2], &skip = saved[5];
    kernels::SelectiveScanGradient g{
        .forward = problem({u, saved[1], {}, saved[3], saved[4], skip, {}, saved[6]}, a_log2)};
    auto& p = g.forward;
    p.saved = static_cast<float*>(saved[7].data_ptr());
    const auto dy = upstream[0].contiguous(), dstate = upstream[1].contiguous();
    const auto du = at::empty_like(u), ddelta = at::empty_like(u), dinitial = at::empty_like(dstate);
    const auto da = at::empty({p.batch, p.states, p.channels}, u.options());
    const auto dskip = at::empty({p.batch, p.channels}, u.options());
    const auto maps =
        at::empty({2, kernels::scan_tasks(p.channels), p.batch, p.tokens, p.states}, u.options());
    g.dy = floats(dy);
    g.dstate = floats(dstate);
    g.du = du.mutable_data_ptr<float>();
    g.ddelta = ddelta.mutable_data_ptr<float>();
    g.da = da.mutable_data_ptr<float>();
    g.db = maps.mutable_data_ptr<float>();
    g.dc = g.db + maps.numel() / 2;
    g.dskip = dskip.mutable_data_ptr<float>();
    g.dinitial = dinitial.mutable_data_ptr<float>();
    const auto isa = static_cast<simd::Isa>(ctx->saved_data["isa"].toInt());
    parallel_for(tasks(p), grain(p),
                 [&](int64_t begin, int64_t end) { kernels::selective_scan_backward(isa, g, begin, end); });
    const auto sums = maps.sum(1);  // over the blocks of channels
    return {du,
            ddelta,
            da.sum(0).t(),
            sums[0],
            sums[1],
            skip.defined() ? dskip.sum(0) : at::Tensor(),
            ctx->saved_data["initial_gradient"].toBool() ? dinitial : at::Tensor(),
            at::Tensor(),
            at::Tensor(),
            at::Tensor()};
  }
};

bool needs_gradient(const SelectiveScan& in) {
  if (!c10::GradMode::is_enabled()) return false;
  for (const at::Tensor* x : {&in.u, &in.delta, &in.a, &in.b, &in.c, &in.skip, &in.initial_state})
    if (requires_gradient(*x)) return true;
  return false;
}

at::Tensor prepared(const at::Tensor& x) { return x.defined() ? x.to(at::kFloat).contiguous() : x; }

}  // namespace

SelectiveScanResult selective_scan(const SelectiveScan& in) {
  check_selective("selective_scan", in);
  const auto kernel = choose_kernel(in.u);
  if (kernel == Kernel::cuda && has_cuda_selective_scan(in)) return cuda_selective_scan(in);
  if (!is_cpu_kernel(kernel)) return reference::selective_scan(in);
  const auto starts = in.starts.defined() ? in.starts.contiguous() : in.starts;
  const auto result = SelectiveScanFunction::apply(
      prepared(in.u), prepared(in.delta), prepared(in.a), prepared(in.b), prepared(in.c),
      optional_of(prepared(in.skip)), optional_of(prepared(in.initial_state)), optional_of(starts),
      needs_gradient(in), static_cast<int64_t>(isa_of(kernel)));
  return {result[0].to(in.u.scalar_type()), result[1]};
}

SelectiveScanResult selective_scan_step(const SelectiveScan& in) {
  const char* const op = "selective_scan_step";
  check_selective(op, in);
  require(in.u.size(1) == 1, "{}: u is {}, expected one token", op, shape_text(in.u));
  const auto& state = in.initial_state;
  require(state.defined() && state.is_contiguous() && state.scalar_type() == accumulate_type(in.u),
          "{}: initial_state must be a contiguous {} tensor, it is overwritten", op,
          c10::toString(accumulate_type(in.u)));
  const c10::NoGradGuard no_grad;
  const auto kernel = choose_kernel(in.u);
  if (kernel == Kernel::cuda && has_cuda_selective_scan(in)) return cuda_selective_scan_step(in);
  if (!is_cpu_kernel(kernel)) {
    const auto result = reference::selective_scan(in);
    state.copy_(result.state);
    return {result.y, state};
  }
  if (in.starts.defined()) state.masked_fill_(in.starts.unsqueeze(2), 0);
  const SelectiveScan ready{prepared(in.u), prepared(in.delta), {},
                            prepared(in.b), prepared(in.c),     prepared(in.skip)};
  const auto a_log2 = (prepared(in.a) / kLn2).contiguous();  // [E, N]
  auto p = problem(ready, a_log2);
  const auto y = at::empty_like(ready.u);
  p.y = y.mutable_data_ptr<float>();
  p.state = static_cast<float*>(state.data_ptr());
  parallel_for(tasks(p), grain(p), [&](int64_t begin, int64_t end) {
    kernels::selective_scan_one(isa_of(kernel), p, begin, end);
  });
  return {y.to(in.u.scalar_type()), state};
}

namespace {

using OptionalTensor = std::optional<at::Tensor>;

std::tuple<at::Tensor, at::Tensor> selective_scan_operator(const at::Tensor& u, const at::Tensor& delta,
                                                           const at::Tensor& a, const at::Tensor& b,
                                                           const at::Tensor& c, const OptionalTensor& skip,
                                                           const OptionalTensor& initial_state,
                                                           const OptionalTensor& starts) {
  const auto result = selective_scan({u, delta, a, b, c, skip.value_or(at::Tensor()),
                                      initial_state.value_or(at::Tensor()), starts.value_or(at::Tensor())});
  return {result.y, result.state};
}

at::Tensor selective_scan_step_operator(const at::Tensor& u, const at::Tensor& delta, const at::Tensor& a,
                                        const at::Tensor& b, const at::Tensor& c, at::Tensor& state,
                                        const OptionalTensor& skip) {
  return selective_scan_step({u, delta, a, b, c, skip.value_or(at::Tensor()), state, {}}).y;
}

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def(
      "selective_scan(Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor? skip=None, "
      "Tensor? initial_state=None, Tensor? starts=None) -> (Tensor y, Tensor state)",
      selective_scan_operator);
  m.def(
      "selective_scan_step(Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor(a!) state, "
      "Tensor? skip=None) -> Tensor",
      selective_scan_step_operator);
}

}  // namespace
}  // namespace weft::ops
