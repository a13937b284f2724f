// The definition of linear attention, token by token.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>

#include "ops/linear_attention/linear_attention.h"
#include "ops/shape.h"

namespace weft::ops::reference {
namespace {

at::Tensor state_before(const LinearAttention& in, at::ScalarType type) {
  if (in.initial_state.defined()) return in.initial_state.to(type);
  return at::zeros({in.v.size(0), in.v.size(2), in.k.size(3), in.v.size(3)}, in.v.options().dtype(type));
}

// [B, T, ...] as T tensors [B, ...]; none when x is undefined.
std::vector<at::Tensor> tokens_of(const at::Tensor& x) {
  return x.defined() ? x.unbind(1) : std::vector<at::Tensor>();
}

// What the state is multiplied with at every token: T tensors broadcastable to [B, H, K, V].
std::vector<at::Tensor> decays(const at::Tensor& log_decay, int64_t batch, int64_t tokens) {
  if (!log_decay.defined()) return {};
  auto decay = log_decay.exp();
  if (decay.dim() == 1) decay = decay.expand({batch, tokens, -1});
  if (decay.dim() == 3) decay = decay.unsqueeze(-1);
  return tokens_of(decay.unsqueeze(-1));
}

}  // namespace

LinearAttentionResult linear_attention(const LinearAttention& in) {
  const auto type = accumulate_type(in.v);
  const auto cast = [&](const at::Tensor& x) { return x.defined() ? x.to(type) : x; };
  const int64_t group = in.v.size(2) / in.k.size(2);
  const double scale = in.scale != 0 ? in.scale : 1 / std::sqrt(static_cast<double>(in.k.size(3)));
  const auto heads = [&](const at::Tensor& x) {
    return cast(x).repeat_interleave(group, 2);
  };  // [B, T, H, K]
  const auto erase_rows = [&](const at::Tensor& x) {
    return tokens_of(x.defined() && x.size(2) != in.v.size(2) ? heads(x) : cast(x));
  };
  const auto q = tokens_of(heads(in.q) * scale), k = tokens_of(heads(in.k)), v = tokens_of(cast(in.v));
  const auto decay = decays(cast(in.log_decay), in.v.size(0), in.v.size(1));
  const auto beta = tokens_of(cast(in.beta)), starts = tokens_of(in.starts);
  const auto erase_read = erase_rows(in.erase_read), erase_write = erase_rows(in.erase_write);
  const auto write = in.write.defined() ? tokens_of(cast(in.write)) : beta;
  const auto bonus = cast(in.bonus);
  const auto read = [](const at::Tensor& state, const at::Tensor& x) {
    return at::matmul(x.unsqueeze(-2), state).squeeze(-2);
  };

  auto s = state_before(in, type);  // [B, H, K, V]
  std::vector<at::Tensor> y;
  for (size_t t = 0; t < v.size(); ++t) {
    if (in.starts.defined()) s = at::where(starts[t].view({-1, 1, 1, 1}), at::zeros_like(s), s);
    if (bonus.defined()) y.push_back(read(s, q[t]) + (q[t] * bonus * k[t]).sum(-1, true) * v[t]);
    const auto recalled = erase_read.empty() ? at::Tensor() : read(s, erase_read[t]);
    if (!decay.empty()) s = s * decay[t];
    if (recalled.defined()) s = s + erase_write[t].unsqueeze(-1) * recalled.unsqueeze(-2);
    auto value = write.empty() ? v[t] : write[t].unsqueeze(-1) * v[t];
    if (!beta.empty()) value = value - beta[t].unsqueeze(-1) * read(s, k[t]);
    s = s + k[t].unsqueeze(-1) * value.unsqueeze(-2);
    if (!bonus.defined()) y.push_back(read(s, q[t]));
  }
  if (y.empty()) return {at::zeros_like(in.v), s};
  return {at::stack(y, 1).to(in.v.scalar_type()), s};
}

}  // namespace weft::ops::reference
