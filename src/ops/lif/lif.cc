#include "ops/lif/lif.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/lif/kernel.h"
#include "ops/parallel.h"
#include "ops/recurrence.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor flat(const at::Tensor& x) { return x.to(at::kFloat).contiguous(); }

int64_t grain(const at::Tensor& x) {  // rows of the batch that are worth a thread
  return 1 + 16384 / std::max<int64_t>(1, x.size(1) * x.size(2));
}

kernels::LifProblem problem_of(const at::Tensor& x, const at::Tensor& starts, double tau, double threshold,
                               double alpha) {
  kernels::LifProblem p;
  p.tokens = x.size(1);
  p.channels = x.size(2);
  p.leak = static_cast<float>(1 / tau);
  p.threshold = static_cast<float>(threshold);
  p.alpha = static_cast<float>(alpha);
  if (starts.defined()) p.starts = starts.const_data_ptr<bool>();
  return p;
}

class LifFunction : public torch::autograd::Function<LifFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& initial,
                               const std::optional<at::Tensor>& maybe_starts, double tau, double threshold,
                               double alpha) {
    const auto isa = isa_of(choose_kernel(x));
    const auto wide = flat(x), before = flat(initial);
    const auto starts = maybe_starts ? maybe_starts->contiguous() : at::Tensor();
    const auto spikes = at::empty_like(wide), charged = at::empty_like(wide), state = at::empty_like(before);
    auto p = problem_of(wide, starts, tau, threshold, alpha);
    p.x = wide.const_data_ptr<float>();
    p.initial = before.const_data_ptr<float>();
    p.charged = charged.mutable_data_ptr<float>();
    p.spikes = spikes.mutable_data_ptr<float>();
    p.state = state.mutable_data_ptr<float>();
    parallel_for(wide.size(0), grain(wide),
                 [&](int64_t begin, int64_t end) { kernels::lif_forward(isa, p, begin, end); });
    ctx->save_for_backward({charged, starts});
    ctx->saved_data["options"] = std::vector<double>{tau, threshold, alpha};
    ctx->saved_data["type"] = static_cast<int64_t>(x.scalar_type());
    return {spikes.to(x.scalar_type()), state};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& upstream) {
    require_first_order("lif");
    const auto saved = ctx->get_saved_variables();
    const auto options = ctx->saved_data["options"].toDoubleVector();
    const auto& charged = saved[0];
    const auto isa = isa_of(choose_kernel(charged));
    const auto dspikes = upstream[0].defined() ? flat(upstream[0]) : at::zeros_like(charged);
    const auto dinitial = at::empty({charged.size(0), charged.size(2)}, charged.options());
    const auto dstate = upstream[1].defined() ? flat(upstream[1]) : at::zeros_like(dinitial);
    const auto dx = at::empty_like(charged);
    const auto p = problem_of(charged, saved[1], options[0], options[1], options[2]);
    const kernels::LifGradient g{.charged = charged.const_data_ptr<float>(),
                                 .dspikes = dspikes.const_data_ptr<float>(),
                                 .dstate = dstate.const_data_ptr<float>(),
                                 .dx = dx.mutable_data_ptr<float>(),
                                 .dinitial = dinitial.mutable_data_ptr<float>()};
    parallel_for(charged.size(0), grain(charged),
                 [&](int64_t begin, int64_t end) { kernels::lif_backward(isa, p, g, begin, end); });
    const auto type = static_cast<at::ScalarType>(ctx->saved_data["type"].toInt());
    return {dx.to(type), dinitial, {}, {}, {}, {}};
  }
};

}  // namespace

LifResult lif(const Lif& in) {
  require_like("lif", "x", in.x, in.x);
  require_shape("lif", "x", in.x, {-1, -1, -1});
  require(in.tau >= 1, "lif: tau is {}; it must be at least 1", in.tau);
  require(in.alpha > 0, "lif: alpha is {}; it must be above 0", in.alpha);
  check_starts("lif", in.starts, in.x, in.x.size(0), in.x.size(1));
  if (in.initial_state.defined()) {
    require_like("lif", "initial_state", in.initial_state, in.x);
    require_shape("lif", "initial_state", in.initial_state, {in.x.size(0), in.x.size(2)});
  }
  if (!is_cpu_kernel(choose_kernel(in.x))) return reference::lif(in);
  const auto initial = in.initial_state.defined()
                           ? in.initial_state
                           : at::zeros({in.x.size(0), in.x.size(2)}, in.x.options().dtype(at::kFloat));
  const auto result =
      LifFunction::apply(in.x, initial, optional_of(in.starts), in.tau, in.threshold, in.alpha);
  return {result[0], result[1]};
}

}  // namespace weft::ops
