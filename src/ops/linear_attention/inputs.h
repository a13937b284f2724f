// From the tensors of the linear attention family to what its kernels take; private to the folder.
#pragma once

#include <ATen/Functions.h>

#include <algorithm>
#include <optional>

#include "ops/linear_attention/kernel.h"
#include "ops/linear_attention/linear_attention.h"
#include "ops/parallel.h"

namespace weft::ops {

using Optional = std::optional<at::Tensor>;
inline at::Tensor tensor(const Optional& x) { return x.value_or(at::Tensor()); }
inline Optional optional(const at::Tensor& x) { return x.defined() ? Optional(x) : std::nullopt; }

inline const float* data_of(const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; }
inline float* mutable_data_of(const at::Tensor& x) {
  return x.defined() ? x.mutable_data_ptr<float>() : nullptr;
}

// All tensors but starts in fp32 with contiguous rows; bonus and state contiguous; write and scale filled in.
LinearAttention kernel_inputs(const LinearAttention& in);

kernels::HeadRows rows_of(const at::Tensor& x);

// Sizes and inputs; the caller adds chunks and outputs.
kernels::LinearAttentionProblem problem_of(const LinearAttention& in);

bool wants_gradient(const LinearAttention& in);

// Value heads that share a key head add their gradients, in order: [B, T, H, K] to [B, T, G, K].
at::Tensor sum_groups(const at::Tensor& dx, int64_t key_heads);

// dx is [B, T, H, K or 1]; the result has the shape of `log_decay`. Undefined stays so.
at::Tensor decay_gradient(const at::Tensor& dx, const at::Tensor& log_decay);

// Runs body(scratch, begin, end) over the tasks, each thread with scratch of its own.
template <class Body>
void for_heads(const kernels::LinearAttentionProblem& p, int64_t scratch_floats, const Body& body) {
  parallel_for(p.batch * p.heads, 1, [&](int64_t begin, int64_t end) {
    const auto scratch = at::empty({scratch_floats}, at::kFloat);
    body(scratch.mutable_data_ptr<float>(), begin, end);
  });
}

// Heads a thread should have at least: a step of one head takes a microsecond or two, waking a thread more.
inline int64_t step_grain(const kernels::LinearAttentionProblem& p) {
  return std::max<int64_t>(1, (1 << 16) / (p.key_width * p.value_width));
}

}  // namespace weft::ops
