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
#include "ops/linear_attention/kernel.h"
#include "ops/parallel.h"
#include "ops/shape.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Optional = std::optional<at::Tensor>;

constexpr int64_t kChunk = 32;

// fp32 with contiguous rows, as the kernels read it.
at::Tensor kernel_input(const at::Tensor& x) {
  if (!x.defined()) return x;
  const auto y = x.to(at::kFloat);
  return y.dim() < 4 || y.stride(-1) == 1 || y.size(-1) == 1 ? y : y.contiguous();
}

// All tensors but starts through kernel_input; small ones contiguous; write filled in.
LinearAttention kernel_inputs(const LinearAttention& in) {
  auto x = in;
  for (auto* y : {&x.q, &x.k, &x.v, &x.log_decay, &x.beta, &x.write, &x.bonus, &x.initial_state})
    *y = kernel_input(*y);
  for (auto* y : {&x.bonus, &x.initial_state})
    if (y->defined()) *y = y->contiguous();
  if (!x.write.defined()) x.write = x.beta;
  if (x.scale == 0) x.scale = 1 / std::sqrt(static_cast<double>(in.k.size(3)));
  return x;
}

kernels::HeadRows rows_of(const at::Tensor& x) {
  if (!x.defined()) return {};
  if (x.dim() == 1) return {x.const_data_ptr<float>(), 0, 0, x.stride(0)};
  return {x.const_data_ptr<float>(), x.stride(0), x.stride(1), x.stride(2)};
}

const float* data_of(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }
float* mutable_data_of(const at::Tensor& x) { return x.defined() ? x.mutable_data_ptr<float>() : nullptr; }

// Sizes and inputs; the caller adds chunks and outputs.
kernels::LinearAttentionProblem problem_of(const LinearAttention& in) {
  kernels::LinearAttentionProblem p;
  p.batch = in.v.size(0), p.tokens = in.v.size(1), p.heads = in.v.size(2), p.value_width = in.v.size(3);
  p.key_heads = in.k.size(2), p.key_width = in.k.size(3);
  p.chunk = std::max<int64_t>(1, std::min(kChunk, p.tokens));
  p.scale = static_cast<float>(in.scale);
  p.q = rows_of(in.q), p.k = rows_of(in.k), p.v = rows_of(in.v);
  p.log_decay = rows_of(in.log_decay), p.beta = rows_of(in.beta), p.write = rows_of(in.write);
  if (in.log_decay.defined())
    p.decay = in.log_decay.dim() == 4 ? kernels::Decay::vector : kernels::Decay::scalar;
  p.bonus = data_of(in.bonus), p.initial_state = data_of(in.initial_state);
  return p;
}

void use_chunks(kernels::LinearAttentionProblem& p, const ChunkTable& table) {
  p.chunk_begin = table.begin.data(), p.chunk_offset = table.offset.data(), p.fresh = table.fresh.data();
}

// Runs body(scratch, begin, end) over the tasks, each thread with scratch of its own.
template <class Body>
void for_heads(const kernels::LinearAttentionProblem& p, const Body& body) {
  const int64_t size = kernels::linear_attention_scratch(p);
  parallel_for(p.batch * p.heads, 1, [&](int64_t begin, int64_t end) {
    const auto scratch = at::empty({size}, at::kFloat);
    body(scratch.mutable_data_ptr<float>(), begin, end);
  });
}

struct Forward {
  at::Tensor y, state, states;
};

// y is undefined when q is; states only when wanted.
Forward run_forward(const LinearAttention& in, simd::Isa isa, bool want_states) {
  auto p = problem_of(in);
  const ChunkTable table(p.batch, p.tokens, p.chunk, in.starts);
  use_chunks(p, table);
  Forward out;
  if (in.q.defined()) out.y = at::empty({p.batch, p.tokens, p.heads, p.value_width}, at::kFloat);
  out.state = at::empty({p.batch, p.heads, p.key_width, p.value_width}, at::kFloat);
  if (want_states) out.states = at::empty({table.chunks(), p.heads, p.key_width, p.value_width}, at::kFloat);
  p.y = mutable_data_of(out.y), p.state = mutable_data_of(out.state), p.states = mutable_data_of(out.states);
  for_heads(p, [&](float* scratch, int64_t begin, int64_t end) {
    kernels::linear_attention_forward(isa, p, scratch, begin, end);
  });
  return out;
}

// Value heads that share a key head add their gradients, in order.
at::Tensor sum_groups(const at::Tensor& dx, int64_t key_heads) {
  if (!dx.defined() || dx.size(2) == key_heads) return dx;
  return dx.view({dx.size(0), dx.size(1), key_heads, dx.size(2) / key_heads, dx.size(3)}).sum(3);
}

at::Tensor tensor(const Optional& x) { return x.value_or(at::Tensor()); }
Optional optional(const at::Tensor& x) { return x.defined() ? Optional(x) : std::nullopt; }

// The inputs of the autograd function, in its order.
enum Input { kQ, kK, kV, kLogDecay, kBeta, kWrite, kBonus, kInitialState, kInputs };

class LinearAttentionFunction final : public torch::autograd::Function<LinearAttentionFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const Optional& log_decay, const Optional& beta,
                               const Optional& write, const Optional& bonus, const Optional& initial_state,
                               const Optional& starts, double scale, int64_t isa) {
    const LinearAttention in{q,
                             k,
                             v,
                             tensor(log_decay),
                             tensor(beta),
                             tensor(write),
                             tensor(bonus),
                             scale,
                             tensor(initial_state),
                             tensor(starts)};
    const auto out = run_forward(in, static_cast<simd::Isa>(isa), true);
    ctx->save_for_backward(
        {q, k, v, in.log_decay, in.beta, in.write, in.bonus, in.initial_state, in.starts, out.states});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["isa"] = isa;
    ctx->set_materialize_grads(false);
    return {out.y, out.state};
  }

  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    supported(!at::GradMode::is_enabled(),
              "linear_attention: the kernels have no second derivative; WEFT_KERNEL=reference has");
    const auto x = ctx->get_saved_variables();
    const LinearAttention in{x[0], x[1], x[2], x[3], x[4], x[5], x[6], ctx->saved_data["scale"].toDouble(),
                             x[7], x[8]};
    auto p = problem_of(in);
    const ChunkTable table(p.batch, p.tokens, p.chunk, in.starts);
    use_chunks(p, table);
    p.states = mutable_data_of(x[9]);

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
    for_heads(p, [&](float* scratch, int64_t begin, int64_t end) {
      kernels::linear_attention_backward(isa, p, g, scratch, begin, end);
    });

    for (const auto input : {kQ, kK}) d[input] = sum_groups(d[input], p.key_heads);
    if (d[kBonus].defined()) d[kBonus] = d[kBonus].sum(0);
    if (d[kLogDecay].defined() && in.log_decay.dim() == 1)
      d[kLogDecay] = d[kLogDecay].sum(at::IntArrayRef{0, 1, 3});
    if (d[kLogDecay].defined() && in.log_decay.dim() == 3) d[kLogDecay] = d[kLogDecay].squeeze(-1);
    d.resize(kInputs + 3);  // starts, scale, isa
    return d;
  }
};

bool wants_gradient(const LinearAttention& in) {
  if (!at::GradMode::is_enabled()) return false;
  for (const auto* x :
       {&in.q, &in.k, &in.v, &in.log_decay, &in.beta, &in.write, &in.bonus, &in.initial_state})
    if (x->defined() && x->requires_grad()) return true;
  return false;
}

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

// Heads a thread should have at least: a step of one head takes a microsecond or two, waking a thread more.
int64_t step_grain(const kernels::LinearAttentionProblem& p) {
  return std::max<int64_t>(1, (1 << 16) / (p.key_width * p.value_width));
}

}  // namespace

LinearAttentionResult linear_attention(const LinearAttention& in) {
  check_linear_attention("linear_attention", in);
  require(in.q.defined(), "linear_attention: q is missing");
  const Kernel kernel = choose_kernel(in.v);
  if (kernel == Kernel::reference || kernel == Kernel::cuda) return reference::linear_attention(in);
  const auto x = kernel_inputs(in);
  const auto type = in.v.scalar_type();
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
  if (kernel == Kernel::reference || kernel == Kernel::cuda) {
    const auto out = reference::linear_attention(in);
    in.initial_state.copy_(out.state);
    return {out.y, in.initial_state};
  }
  const auto x = kernel_inputs(in);
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

std::tuple<at::Tensor, at::Tensor> linear_attention_operator(const at::Tensor& q, const at::Tensor& k,
                                                             const at::Tensor& v, const Optional& log_decay,
                                                             const Optional& beta, const Optional& write,
                                                             const Optional& bonus, double scale,
                                                             const Optional& initial_state,
                                                             const Optional& starts) {
  const auto out = linear_attention({q, k, v, tensor(log_decay), tensor(beta), tensor(write), tensor(bonus),
                                     scale, tensor(initial_state), tensor(starts)});
  return {out.y, out.state};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(weft, m) {
  m.def(
      "linear_attention(Tensor q, Tensor k, Tensor v, Tensor? log_decay=None, Tensor? beta=None, Tensor? "
      "write=None, "
      "Tensor? bonus=None, float scale=0., Tensor? initial_state=None, Tensor? starts=None) -> (Tensor, "
      "Tensor)",
      linear_attention_operator);
}

}  // namespace weft::ops
