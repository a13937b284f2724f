#include "ops/linear_attention/cuda.h"

#include <ATen/Functions.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "ops/cuda_kernels.h"
#include "ops/cuda_tensors.h"
#include "ops/linear_attention/inputs.h"
#include "ops/linear_attention/kernel_cuda.h"
#include "ops/recurrence.h"

namespace weft::ops {
namespace {

using kernels::CudaLinearAttention;
using kernels::CudaLinearAttentionForm;
using kernels::CudaRows;
using kernels::LinearAttentionCuda;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr auto kOp = "linear_attention";

CudaRows cuda_rows(const at::Tensor& x) {
  if (!x.defined()) return {};
  if (x.dim() == 1) return {x.const_data_ptr(), cuda_type(x), 0, 0, x.stride(0)};
  return {x.const_data_ptr(), cuda_type(x), x.stride(0), x.stride(1), x.stride(2)};
}

const uint8_t* bytes_of(const at::Tensor& x) {
  return x.defined() ? reinterpret_cast<const uint8_t*>(x.const_data_ptr<bool>()) : nullptr;
}

// As the kernels take them: bonus and states in fp32, gates in fp32 or the type of v (of a whole sequence, strengths in
// fp32), write and scale filled in.
LinearAttention cuda_inputs(const LinearAttention& in, bool one_token) {
  const auto wide = [](const at::Tensor& x) { return x.defined() ? x.to(at::kFloat) : x; };
  const auto gate = [&](const at::Tensor& x) {
    return x.defined() && x.scalar_type() != in.v.scalar_type() ? wide(x) : x;
  };
  auto x = in;
  for (auto* y : {&x.q, &x.k, &x.v, &x.erase_read, &x.erase_write}) *y = loadable_rows(*y);
  x.log_decay = loadable_rows(gate(x.log_decay));
  for (auto* y : {&x.beta, &x.write}) *y = one_token ? gate(*y) : wide(*y);
  for (auto* y : {&x.bonus, &x.initial_state}) *y = wide(*y);
  for (auto* y : {&x.bonus, &x.initial_state, &x.starts})
    if (y->defined()) *y = loadable_rows(y->contiguous());
  if (!x.write.defined()) x.write = x.beta;
  if (x.scale == 0) x.scale = 1 / std::sqrt(static_cast<double>(in.k.size(3)));
  return x;
}

void fill_problem(const LinearAttention& in, const CudaLaunch& launch, CudaLinearAttention& p) {
  p.batch = in.v.size(0), p.tokens = in.v.size(1), p.heads = in.v.size(2), p.value_width = in.v.size(3);
  p.key_heads = in.k.size(2), p.key_width = in.k.size(3);
  p.erase_heads = in.erase_read.defined() ? in.erase_read.size(2) : 0;
  p.scale = static_cast<float>(in.scale);
  p.q = cuda_rows(in.q), p.k = cuda_rows(in.k), p.v = cuda_rows(in.v);
  if (in.log_decay.defined())
    p.decay = in.log_decay.dim() == 4 ? kernels::Decay::vector : kernels::Decay::scalar;
  p.log_decay = cuda_rows(in.log_decay), p.beta = cuda_rows(in.beta), p.write = cuda_rows(in.write);
  p.erase_read = cuda_rows(in.erase_read), p.erase_write = cuda_rows(in.erase_write);
  p.bonus = data_of(in.bonus), p.initial_state = data_of(in.initial_state), p.starts = bytes_of(in.starts);
  p.multiprocessors = launch.multiprocessors(), p.capability = launch.capability();
}

CudaLinearAttention problem_of(const LinearAttention& in, const CudaLaunch& launch) {
  CudaLinearAttention p;
  fill_problem(in, launch, p);
  return p;
}

const CudaLinearAttentionForm* form_for(const CudaLinearAttention& p) {
  for (auto form = CudaKernels<LinearAttentionCuda>::get()->forms; *form; ++form)
    if ((*form)->takes(p)) return *form;
  return nullptr;
}

at::Tensor memory(int64_t bytes, const at::Tensor& like) {
  return bytes > 0 ? at::empty({bytes}, like.options().dtype(at::kByte)) : at::Tensor();
}
void* address(const at::Tensor& x) { return x.defined() ? x.mutable_data_ptr() : nullptr; }

struct Forward {
  at::Tensor y, state, saved;
};

Forward run_forward(const CudaLinearAttentionForm& form, const LinearAttention& in, const CudaLaunch& launch,
                    bool for_backward) {
  auto p = problem_of(in, launch);
  p.decay_gradient = requires_gradient(in.log_decay);
  Forward out;
  out.y = at::empty({p.batch, p.tokens, p.heads, p.value_width}, in.v.options());
  out.state = at::empty({p.batch, p.heads, p.key_width, p.value_width}, in.v.options().dtype(at::kFloat));
  if (for_backward) out.saved = memory(form.saved_bytes(p), in.v);
  const auto scratch = memory(form.forward_scratch(p), in.v);
  p.y = address(out.y), p.state = mutable_data_of(out.state);
  check_launch(kOp, form.forward(p, address(out.saved), address(scratch), launch.stream()));
  return out;
}

// The inputs of the autograd function, in its order.
enum Input { kQ, kK, kV, kLogDecay, kBeta, kWrite, kEraseRead, kEraseWrite, kBonus, kInitialState, kInputs };

class CudaLinearAttentionFunction final : public torch::autograd::Function<CudaLinearAttentionFunction> {
 public:
  static variable_list forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                               const at::Tensor& v, const Optional& log_decay, const Optional& beta,
                               const Optional& write, const Optional& erase_read, const Optional& erase_write,
                               const Optional& bonus, const Optional& initial_state, const Optional& starts,
                               double scale, int64_t form) {
    const LinearAttention in{.q = q,
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
                             .starts = tensor(starts)};
    const auto out =
        run_forward(*reinterpret_cast<const CudaLinearAttentionForm*>(form), in, CudaLaunch(v), true);
    ctx->save_for_backward({q, k, v, in.log_decay, in.beta, in.write, in.erase_read, in.erase_write, in.bonus,
                            in.initial_state, in.starts, out.saved});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["form"] = form;
    ctx->saved_data["decay_gradient"] = requires_gradient(in.log_decay);
    ctx->set_materialize_grads(false);
    return {out.y, out.state};
  }

  static variable_list backward(AutogradContext* ctx, variable_list upstream) {
    require_first_order(kOp);
    const auto x = ctx->get_saved_variables();
    const LinearAttention in{.q = x[kQ],
                             .k = x[kK],
                             .v = x[kV],
                             .log_decay = x[kLogDecay],
                             .beta = x[kBeta],
                             .erase_read = x[kEraseRead],
                             .erase_write = x[kEraseWrite],
                             .write = x[kWrite],
                             .bonus = x[kBonus],
                             .scale = ctx->saved_data["scale"].toDouble(),
                             .initial_state = x[kInitialState],
                             .starts = x[kInputs]};
    const auto& form = *reinterpret_cast<const CudaLinearAttentionForm*>(ctx->saved_data["form"].toInt());
    bool wanted[kInputs];
    size_t edge = 0;  // only tensors that were given have one
    for (size_t input = 0; input < kInputs; ++input)
      wanted[input] = x[input].defined() && ctx->needs_input_grad(edge++);
    auto d =
        run_backward(form, in, x[kInputs + 1], upstream, wanted, ctx->saved_data["decay_gradient"].toBool());
    d.resize(kInputs + 3);  // starts, scale, form
    return d;
  }

 private:
  static variable_list run_backward(const CudaLinearAttentionForm& form, const LinearAttention& in,
                                    const at::Tensor& saved, const variable_list& upstream,
                                    const bool (&wanted)[kInputs], bool decay_gradient) {
    const CudaLaunch launch(in.v);
    auto p = problem_of(in, launch);
    p.decay_gradient = decay_gradient;  // as the forward was told, which saved what that takes
    const auto dy = upstream[0].defined() ? loadable_rows(upstream[0].contiguous())
                                          : at::zeros_like(in.v, at::MemoryFormat::Contiguous);
    const auto dstate = upstream[1].defined() ? loadable_rows(upstream[1].contiguous()) : at::Tensor();
    kernels::CudaLinearAttentionGradients g;
    g.dy = dy.const_data_ptr(), g.dstate = data_of(dstate);
    const int64_t key_heads = form.sums_groups ? p.key_heads : p.heads;
    g.group_fp32 = key_heads != p.key_heads, g.erase_fp32 = p.erase_heads != p.heads;
    variable_list d(kInputs);
    const auto make = [&](Input input, at::IntArrayRef sizes, bool fp32) {
      if (wanted[input])
        d[input] = at::empty(sizes, fp32 ? in.v.options().dtype(at::kFloat) : in.v.options());
    };
    const bool vector = p.decay == kernels::Decay::vector;
    for (const auto input : {kQ, kK}) make(input, {p.batch, p.tokens, key_heads, p.key_width}, g.group_fp32);
    for (const auto input : {kEraseRead, kEraseWrite})
      make(input, {p.batch, p.tokens, p.heads, p.key_width}, g.erase_fp32);
    make(kV, {p.batch, p.tokens, p.heads, p.value_width}, false);
    make(kLogDecay, {p.batch, p.tokens, p.heads, vector ? p.key_width : 1}, true);
    for (const auto input : {kBeta, kWrite}) make(input, {p.batch, p.tokens, p.heads}, true);
    make(kBonus, {p.batch, p.heads, p.key_width}, true);
    make(kInitialState, {p.batch, p.heads, p.key_width, p.value_width}, true);
    g.dq = address(d[kQ]), g.dk = address(d[kK]), g.dv = address(d[kV]);
    g.derase_read = address(d[kEraseRead]), g.derase_write = address(d[kEraseWrite]);
    g.dlog_decay = mutable_data_of(d[kLogDecay]), g.dbeta = mutable_data_of(d[kBeta]);
    g.dwrite = mutable_data_of(d[kWrite]), g.dbonus = mutable_data_of(d[kBonus]);
    g.dinitial = mutable_data_of(d[kInitialState]);
    const auto scratch = memory(form.backward_scratch(p), in.v);
    check_launch(kOp, form.backward(p, g, address(saved), address(scratch), launch.stream()));

    for (const auto input : {kQ, kK}) d[input] = sum_groups(d[input], p.key_heads);
    for (const auto input : {kEraseRead, kEraseWrite}) d[input] = sum_groups(d[input], p.erase_heads);
    if (d[kBonus].defined()) d[kBonus] = d[kBonus].sum(0);
    d[kLogDecay] = ops::decay_gradient(d[kLogDecay], in.log_decay);
    const std::pair<Input, const at::Tensor*> inputs[] = {{kQ, &in.q},
                                                          {kK, &in.k},
                                                          {kEraseRead, &in.erase_read},
                                                          {kEraseWrite, &in.erase_write},
                                                          {kLogDecay, &in.log_decay}};
    for (const auto& [input, like] : inputs)
      if (d[input].defined()) d[input] = d[input].to(like->scalar_type());
    return d;
  }
};

void fill_ring(const LinearAttentionRing& ring, kernels::CudaRing& p) {
  p.batch = ring.state.size(0), p.heads = ring.state.size(1);
  p.key_width = ring.state.size(2), p.value_width = ring.state.size(3);
  p.capacity = ring.keys.size(2), p.rows = ring.keys.size(3), p.decay_width = ring.decays.size(3);
  p.keep = ring.keep, p.length = ring.length.mutable_data_ptr<int64_t>();
  p.state = mutable_data_of(ring.state), p.keys = mutable_data_of(ring.keys);
  p.values = mutable_data_of(ring.values), p.decays = mutable_data_of(ring.decays);
}

}  // namespace

std::optional<LinearAttentionResult> cuda_linear_attention(const LinearAttention& in) {
  const auto* table = CudaKernels<LinearAttentionCuda>::get();
  if (!table || in.v.size(0) == 0 || in.v.size(1) == 0) return std::nullopt;
  const auto x = cuda_inputs(in, false);
  const CudaLaunch launch(in.v);
  const auto* form = form_for(problem_of(x, launch));
  if (!form) return std::nullopt;
  if (!wants_gradient(in)) {
    const auto out = run_forward(*form, x, launch, false);
    return LinearAttentionResult{out.y, out.state};
  }
  const auto out = CudaLinearAttentionFunction::apply(
      x.q, x.k, x.v, optional(x.log_decay), optional(x.beta), optional(x.write), optional(x.erase_read),
      optional(x.erase_write), optional(x.bonus), optional(x.initial_state), optional(x.starts), x.scale,
      reinterpret_cast<int64_t>(form));
  return LinearAttentionResult{out[0], out[1]};
}

std::optional<at::Tensor> cuda_linear_attention_step(const LinearAttention& in) {
  const auto* table = CudaKernels<LinearAttentionCuda>::get();
  if (!table || in.v.size(0) == 0) return std::nullopt;
  const auto x = cuda_inputs(in, true);
  const CudaLaunch launch(in.v);
  auto p = problem_of(x, launch);
  if (!table->takes_step(p)) return std::nullopt;
  const auto y = at::empty({p.batch, 1, p.heads, p.value_width}, in.v.options());
  p.y = address(y), p.initial_state = nullptr, p.state = mutable_data_of(in.initial_state);
  check_launch("linear_attention_step", table->step(p, launch.stream()));
  return y;
}

std::optional<at::Tensor> cuda_linear_attention_ring_step(const LinearAttention& in,
                                                          LinearAttentionRing& ring) {
  const auto* table = CudaKernels<LinearAttentionCuda>::get();
  if (!table || in.v.size(0) == 0) return std::nullopt;
  const auto x = cuda_inputs(in, true);
  const CudaLaunch launch(in.v);
  kernels::CudaRing p;
  fill_problem(x, launch, p);
  fill_ring(ring, p);
  if (!table->takes_ring(p)) return std::nullopt;
  const auto y = at::empty({p.batch, 1, p.heads, p.value_width}, in.v.options());
  p.y = address(y);
  check_launch("linear_attention_ring_step", table->ring_step(p, launch.stream()));
  return y;
}

bool cuda_linear_attention_ring_fold(LinearAttentionRing& ring) {
  const auto* table = CudaKernels<LinearAttentionCuda>::get();
  if (!table || ring.state.size(0) == 0) return false;
  const CudaLaunch launch(ring.state);
  kernels::CudaRing p;
  fill_ring(ring, p);
  p.multiprocessors = launch.multiprocessors(), p.capability = launch.capability();
  if (!table->takes_ring(p)) return false;
  check_launch("linear_attention_ring_fold", table->ring_fold(p, launch.stream()));
  return true;
}

}  // namespace weft::ops
