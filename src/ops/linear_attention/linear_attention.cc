#include "ops/linear_attention/linear_attention.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/linear_attention/checks.h"
#include "ops/linear_attention/chunks.h"
#include "ops/linear_attention/cuda.h"
#include "ops/linear_attention/dplr.h"
#include "ops/linear_attention/inputs.h"
#include "ops/linear_attention/kernel.h"
#include "ops/parallel.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
struct Forward {
  at::Tensor y, state, states, values;
};

// y is undefined when q is; states and, with erase, values for the backward only when wanted.
Forward run_forward(const LinearAttention& in, simd::Isa isa, bool for_backward) {
  auto p = problem_of(in);
  const ChunkTable table(p.batch, p.tokens, p.chunk, in.starts);
  table.use(p);
  Forward out;
  if (in.q.defined()) out.y = at::empty({p.batch, p.tokens, p.heads, p.value_width}, at::kFloat);
  out.state = at::empty({p.batch, p.heads, p.key_width, p.value_width}, at::kFloat);
  if (for_backward) out.states = at::empty({table.chunks(), p.heads, p.key_width, p.value_width}, at::kFloat);
  if (for_backward && in.beta.defined())
    out.values = at::empty({p.batch, p.tokens, p.heads, p.value_width}, at::kFloat);
  p.y = mutable_data_of(out.y), p.state = mutable_data_of(out.state);
  p.states = mutable_data_of(out.states), p.values = mutable_data_of(out.values);
  for_heads(p, kernels::linear_attention_scratch(p), [&](float* scratch, int64_t begin, int64_t end) {
    kernels::linear_attention_forward(isa, p, scratch, begin, end);
  });
  return out;
}

// The inputs of the autograd function, in its order.
enum Input { kQ, kK, kV, kLogDecay, kBeta, kWrite, kBonus, kInitialState, kInputs };

class LinearAttentionFunction final : public torch::autograd::Function<LinearAttentionFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const Optional& log_decay, const Optional& beta,
                               const Optional& write, const Optional& bonus, const Optional& initial_state,
                               const Optional& starts, double scale, int64_t isa) {
    const LinearAttention in{.q = q,
                             .k = k,
                             .v = v,
                             .log_decay = tensor(log_decay),
                             .beta = tensor(beta),
                             .write = tensor(write),
                             .bonus = tensor(bonus),
                             .scale = scale,
                             .initial_state = tensor(initial_state),
                             .starts = tensor(starts)};
    const auto out = run_forward(in, static_cast<simd::Isa>(isa), true);
    ctx->save_for_backward({q, k, v, in.log_decay, in.beta, in.write, in.bonus, in.initial_state, in.starts,
                            out.states, out.values});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["isa"] = isa;
    ctx->set_materialize_grads(false);
    return {out.y, out.state};
  }

  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    supported(!at::GradMode::is_enabled(),
              "linear_attention: the kernels have no second derivative; WEFT_KERNEL=reference has");
    const auto x = ctx->get_saved_variables();
    const LinearAttention in{.q = x[0],
                             .k = x[1],
                             .v = x[2],
                             .log_decay = x[3],
                             .beta = x[4],
                             .write = x[5],
                             .bonus = x[6],
                             .scale = ctx->saved_data["scale"].toDouble(),
                             .initial_state = x[7],
                             .starts = x[8]};
    auto p = problem_of(in);
    const ChunkTable table(p.batch, p.tokens, p.chunk, in.starts);
    table.use(p);
    p.states = mutable_data_of(x[9]), p.values = mutable_data_of(x[10]);

    const auto dy =
        upstream[0].defined() ? upstream[0].contiguous() : at::zeros_like(in.v, at::MemoryFormat::Contiguous);
    const auto dstate = upstream[1].defined() ? upstream[1].contiguous() : at::Tensor();
    size_t edge = 0;  // only tensors that were given have one
    bool wanted[kInputs];
    for (size_t input = 0; input < kInputs; ++input)
      wanted[input] = x[input].defined() && ctx->needs_input_grad(edge++);
    const auto make = [&](Input input, at::IntArrayRef sizes) {
      return wanted[input] ? at::empty(sizes, at::kFloat) : at::Tensor();
    };
    const int64_t width = in.log_decay.defined() && in.log_decay.dim() == 4 ? p.key_width : 1;
    variable_list d(kInputs);
    for (const auto input : {kQ, kK}) d[input] = make(input, {p.batch, p.tokens, p.heads, p.key_width});
    d[kV] = make(kV, {p.batch, p.tokens, p.heads, p.value_width});
    d[kLogDecay] = make(kLogDecay, {p.batch, p.tokens, p.heads, width});
    for (const auto input : {kBeta, kWrite}) d[input] = make(input, {p.batch, p.tokens, p.heads});
    d[kBonus] = make(kBonus, {p.batch, p.heads, p.key_width});
    d[kInitialState] = make(kInitialState, {p.batch, p.heads, p.key_width, p.value_width});
    const kernels::LinearAttentionGradients g{
        data_of(dy),
        data_of(dstate),
        mutable_data_of(d[kQ]),
        mutable_data_of(d[kK]),
        mutable_data_of(d[kV]),
        mutable_data_of(d[kLogDecay]),
        mutable_data_of(d[kBeta]),
        mutable_data_of(d[kWrite]),
        mutable_data_of(d[kBonus]),
        mutable_data_of(d[kInitialState]),
    };
    const auto isa = static_cast<simd::Isa>(ctx->saved_data["isa"].toInt());
    for_heads(p, kernels::linear_attention_scratch(p), [&](float* scratch, int64_t begin, int64_t end) {
      kernels::linear_attention_backward(isa, p, g, scratch, begin, end);
    });

    for (const auto input : {kQ, kK}) d[input] = sum_groups(d[input], p.key_heads);
    if (d[kBonus].defined()) d[kBonus] = d[kBonus].sum(0);
    d[kLogDecay] = decay_gradient(d[kLogDecay], in.log_decay);
    d.resize(kInputs + 3);  // starts, scale, isa
    return d;
  }
};

void check_step(const LinearAttention& in) {
  constexpr auto op = "linear_attention_step";
  check_linear_attention(op, in);
  require(in.q.defined(), "{}: q is missing", op);
  require(in.v.size(1) == 1, "{}: v is {}, expected one token", op, shape_text(in.v));
  require(in.initial_state.defined(), "{}: initial_state is missing; the step changes it in place", op);
  require(in.initial_state.is_contiguous() && in.initial_state.scalar_type() == accumulate_type(in.v),
          "{}: initial_state must be contiguous and of type {}, found {}", op,
          c10::toString(accumulate_type(in.v)), c10::toString(in.initial_state.scalar_type()));
}

}  // namespace

LinearAttentionResult linear_attention(const LinearAttention& in) {
  check_linear_attention("linear_attention", in);
  require(in.q.defined(), "linear_attention: q is missing");
  const Kernel kernel = choose_kernel(in.v);
  if (kernel == Kernel::cuda)
    if (const auto out = cuda_linear_attention(in)) return *out;
  if (kernel == Kernel::reference || kernel == Kernel::cuda) return reference::linear_attention(in);
  const auto x = kernel_inputs(in);
  const auto type = in.v.scalar_type();
  if (in.erase_read.defined()) {
    const auto out = dplr_attention(x, isa_of(kernel));
    return {out.y.to(type), out.state};
  }
  if (!wants_gradient(in)) {
    const auto out = run_forward(x, isa_of(kernel), false);
    return {out.y.to(type), out.state};
  }
  const auto out = LinearAttentionFunction::apply(
      x.q, x.k, x.v, optional(x.log_decay), optional(x.beta), optional(x.write), optional(x.bonus),
      optional(x.initial_state), optional(x.starts), x.scale, static_cast<int64_t>(isa_of(kernel)));
  return {out[0].to(type), out[1]};
}

LinearAttentionResult linear_attention_step(const LinearAttention& in) {
  check_step(in);
  const at::NoGradGuard no_grad;
  const Kernel kernel = choose_kernel(in.v);
  if (kernel == Kernel::cuda)
    if (const auto y = cuda_linear_attention_step(in)) return {*y, in.initial_state};
  if (kernel == Kernel::reference || kernel == Kernel::cuda) {
    const auto out = reference::linear_attention(in);
    in.initial_state.copy_(out.state);
    return {out.y, in.initial_state};
  }
  const auto x = kernel_inputs(in);
  if (in.erase_read.defined()) return {dplr_step(x, isa_of(kernel)).to(in.v.scalar_type()), in.initial_state};
  auto p = problem_of(x);
  const auto starts = in.starts.defined() ? in.starts.contiguous() : at::Tensor();
  if (starts.defined()) p.fresh = reinterpret_cast<const uint8_t*>(starts.const_data_ptr<bool>());
  const auto y = at::empty({p.batch, 1, p.heads, p.value_width}, at::kFloat);
  p.y = y.mutable_data_ptr<float>(), p.state = in.initial_state.mutable_data_ptr<float>();
  parallel_for(p.batch * p.heads, step_grain(p), [&](int64_t begin, int64_t end) {
    std::vector<float> decays(static_cast<size_t>(p.key_width));
    kernels::linear_attention_step(isa_of(kernel), p, decays.data(), begin, end);
  });
  return {y.to(in.v.scalar_type()), in.initial_state};
}

namespace {

std::tuple<at::Tensor, at::Tensor> linear_attention_operator(
    const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Optional& log_decay,
    const Optional& beta, const Optional& write, const Optional& bonus, double scale,
    const Optional& initial_state, const Optional& starts, const Optional& erase_read,
    const Optional& erase_write) {
  const auto out = linear_attention({.q = q,
                                     .k = k,
                                     .v = v,
                                     .log_decay = tensor(log_decay),
                                     .beta = tensor(beta),
                                     .erase_read = tensor(erase_read),
                                     .erase_write = tensor(erase_write),
                                     .write = tensor(write),
                                     .bonus = tensor(bonus),
                                     .scale = scale,
                                     .initial_state = tensor(initial_state),
                                     .starts = tensor(starts)});
  return {out.y, out.state};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def(
      "linear_attention(Tensor q, Tensor k, Tensor v, Tensor? log_decay=None, Tensor? beta=None, Tensor? "
      "write=None, Tensor? bonus=None, float scale=0., Tensor? initial_state=None, Tensor? starts=None, "
      "Tensor? erase_read=None, Tensor? erase_write=None) -> (Tensor, Tensor)",
      linear_attention_operator);
}

}  // namespace weft::ops
