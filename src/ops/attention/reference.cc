#include <cmath>
#include <limits>

#include "ops/attention/attention.h"
#include "ops/shape.h"

namespace weft::ops::reference {
namespace {

// [B, T, S] bool: which keys each query sees.
at::Tensor visible_keys(const Mask& mask, int64_t batch, int64_t queries, int64_t keys, at::Device device) {
  const auto options = at::TensorOptions().dtype(at::kLong).device(device);
  const auto q_position =
      (mask.q_positions.defined() ? mask.q_positions
                                  : at::arange(keys - queries, keys, options).expand({batch, queries}))
          .unsqueeze(2);
  const auto k_position =
      (mask.k_positions.defined() ? mask.k_positions : at::arange(keys, options).expand({batch, keys}))
          .unsqueeze(1);

  auto visible = (k_position >= 0).expand({batch, queries, keys});
  if (mask.q_segments.defined())
    visible = visible & (mask.q_segments.unsqueeze(2) == mask.k_segments.unsqueeze(1));
  if (mask.causal) visible = visible & (k_position <= q_position);
  if (mask.window > 0)
    visible = visible & ((k_position > q_position - mask.window) | (k_position < mask.sinks));
  return visible;
}

}  // namespace

AttentionResult attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Mask& mask,
                          double scale) {
  constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
  const auto type = accumulate_type(q);
  const int64_t group = q.size(2) / k.size(2);
  if (scale == 0) scale = 1 / std::sqrt(static_cast<double>(q.size(3)));
  // One more key that nobody sees: maxima exist although S may be 0.
  const auto key =
      at::constant_pad_nd(k.to(type).repeat_interleave(group, 2), {0, 0, 0, 0, 0, 1});  // [B, S+1, H, K]
  const auto value =
      at::constant_pad_nd(v.to(type).repeat_interleave(group, 2), {0, 0, 0, 0, 0, 1});  // [B, S+1, H, V]
  const auto visible =
      at::constant_pad_nd(visible_keys(mask, q.size(0), q.size(1), k.size(1), q.device()), {0, 1});

  auto score = at::einsum("bthk,bshk->bhts", {q.to(type), key}) * scale;
  score = score.masked_fill(~visible.unsqueeze(1), kMinusInfinity);
  const auto largest = score.detach().amax(-1, true);
  const auto shift = largest.masked_fill(largest == kMinusInfinity, 0);
  const auto weight = at::exp(score - shift);
  const auto total = weight.sum(-1, true);  // [B, H, T, 1]
  const auto none = total == 0;
  const auto safe = total.masked_fill(none, 1);
  const auto lse = (at::log(safe) + shift).masked_fill(none, kMinusInfinity).squeeze(-1).transpose(1, 2);
  const auto out = at::einsum("bhts,bshv->bthv", {weight / safe, value});
  return {out.to(v.scalar_type()), lse.contiguous()};
}

}  // namespace weft::ops::reference
