#include "ops/linear_attention/inputs.h"

#include <c10/core/GradMode.h>

#include <cmath>

namespace weft::ops {
namespace {

constexpr int64_t kChunk = 32;

// fp32 with contiguous rows, as the kernels read it.
at::Tensor kernel_input(const at::Tensor& x) {
  if (!x.defined()) return x;
  const auto y = x.to(at::kFloat);
  return y.dim() < 4 || y.stride(-1) == 1 || y.size(-1) == 1 ? y : y.contiguous();
}

}  // namespace

LinearAttention kernel_inputs(const LinearAttention& in) {
  auto x = in;
  for (auto* y : {&x.q, &x.k, &x.v, &x.log_decay, &x.beta, &x.erase_read, &x.erase_write, &x.write, &x.bonus,
                  &x.initial_state})
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

bool wants_gradient(const LinearAttention& in) {
  if (!c10::GradMode::is_enabled()) return false;
  for (const auto* x : {&in.q, &in.k, &in.v, &in.log_decay, &in.beta, &in.erase_read, &in.erase_write,
                        &in.write, &in.bonus, &in.initial_state})
    if (x->defined() && x->requires_grad()) return true;
  return false;
}

at::Tensor sum_groups(const at::Tensor& dx, int64_t key_heads) {
  if (!dx.defined() || dx.size(2) == key_heads) return dx;
  return dx.view({dx.size(0), dx.size(1), key_heads, dx.size(2) / key_heads, dx.size(3)}).sum(3);
}

at::Tensor decay_gradient(const at::Tensor& dx, const at::Tensor& log_decay) {
  if (!dx.defined() || log_decay.dim() == 4) return dx;
  return log_decay.dim() == 1 ? dx.sum(at::IntArrayRef{0, 1, 3}) : dx.squeeze(-1);
}

}  // namespace weft::ops
