#include <cmath>
#include <limits>

#include "ops/attention/attention.h"
#include "ops/shape.h"

namespace weft::ops::reference {
namespace {

at::Tensor with_values(const at::Tensor& x, const at::Tensor& scale, at::ScalarType type) {
  return x.scalar_type() == at::kChar ? dequantize_rows({x, scale}, type) : x.to(type);
}

at::Tensor positions(const at::Tensor& given, int64_t batch, int64_t first, int64_t end, at::Device device) {
  if (given.defined()) return given;
  return at::arange(first, end, at::TensorOptions().dtype(at::kLong).device(device))
      .expand({batch, end - first});
}

// [B, T, S]: the bit of each key's position in the query's words.
at::Tensor tree_bits(const Mask& mask, const at::Tensor& k_position) {
  const int64_t queries = mask.q_tree.size(1), words = mask.q_tree.size(2);
  const auto bit = k_position - mask.tree_begin.view({-1, 1, 1});  // [B, 1, S]
  const auto inside = (bit >= 0) & (bit < 64 * words);
  const auto place = at::where(inside, bit, 0).expand({bit.size(0), queries, bit.size(2)});
  const auto word = mask.q_tree.gather(2, place.div(64, "floor"));
  return at::bitwise_and(at::bitwise_right_shift(word, place.remainder(64)), 1).to(at::kBool) & inside;
}

}  // namespace

at::Tensor visible_keys(const Mask& mask, int64_t batch, int64_t queries, int64_t keys, at::Device device) {
  const auto q_position = positions(mask.q_positions, batch, keys - queries, keys, device).unsqueeze(2);
  const auto k_position = positions(mask.k_positions, batch, 0, keys, device).unsqueeze(1);
  const auto all = at::ones({batch, queries, keys}, at::TensorOptions().dtype(at::kBool).device(device));

  auto before_end = all, range = all;
  if (mask.q_range.defined()) {
    before_end = k_position <= mask.q_range.select(2, 1).unsqueeze(2);
    range = before_end & (k_position >= mask.q_range.select(2, 0).unsqueeze(2));
  } else {
    if (mask.causal) range = before_end = k_position <= q_position;
    if (mask.window > 0) range = range & (k_position > q_position - mask.window);
  }
  auto visible = range | (before_end & (k_position < mask.sinks));
  if (mask.q_prefix.defined()) visible = visible | (k_position < mask.q_prefix.unsqueeze(2));
  if (mask.q_tree.defined()) visible = visible | tree_bits(mask, k_position);
  auto allowed = (k_position >= 0) & all;
  if (mask.q_segments.defined())
    allowed = allowed & (mask.q_segments.unsqueeze(2) == mask.k_segments.unsqueeze(1));
  if (mask.stripes.block == 0) return visible & allowed;

  const auto block = k_position.div(mask.stripes.block, "floor");
  const auto stripe = [&](const at::Tensor& offset) {
    return before_end.unsqueeze(3) &
           ((block.unsqueeze(3) + offset).remainder(mask.stripes.stride) == mask.stripes.stride - 1);
  };
  if (!mask.stripes.offsets.defined())
    return allowed & (visible | stripe(at::zeros({1}, k_position.options())).squeeze(3));
  return allowed.unsqueeze(3) & (visible.unsqueeze(3) | stripe(mask.stripes.offsets));
}

AttentionResult attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Mask& mask,
                          const AttentionOptions& options) {
  constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
  const auto type = accumulate_type(q);
  const double scale = options.scale == 0 ? 1 / std::sqrt(static_cast<double>(q.size(3))) : options.scale;
  const int64_t group = q.size(2) / k.size(2);
  // One more key that nobody sees: maxima exist although S may be 0.
  const auto key = at::constant_pad_nd(with_values(k, options.k_scale, type).repeat_interleave(group, 2),
                                       {0, 0, 0, 0, 0, 1});  // [B, S+1, H, K]
  const auto value = at::constant_pad_nd(with_values(v, options.v_scale, type).repeat_interleave(group, 2),
                                         {0, 0, 0, 0, 0, 1});  // [B, S+1, H, V]
  auto visible = visible_keys(mask, q.size(0), q.size(1), k.size(1), q.device());
  visible = visible.dim() == 4 ? visible.permute({0, 3, 1, 2}) : visible.unsqueeze(1);  // [B, H or 1, T, S]
  visible = at::constant_pad_nd(visible, {0, 1});

  auto score = at::einsum("bthk,bshk->bhts", {q.to(type), key}) * scale;
  if (options.softcap > 0) score = options.softcap * at::tanh(score / options.softcap);
  if (options.slopes.defined()) {
    const auto q_position =
        positions(mask.q_positions, q.size(0), k.size(1) - q.size(1), k.size(1), q.device());
    const auto k_position = positions(mask.k_positions, q.size(0), 0, k.size(1), q.device());
    const auto distance = k_position.unsqueeze(1) - q_position.unsqueeze(2);  // [B, T, S]
    score = score +
            options.slopes.to(type).view({1, -1, 1, 1}) * at::constant_pad_nd(distance, {0, 1}).unsqueeze(1);
  }
  score = score.masked_fill(~visible, kMinusInfinity);
  const auto largest = score.detach().amax(-1, true);
  const auto shift = largest.masked_fill(largest == kMinusInfinity, 0);
  const auto weight = at::exp(score - shift);
  const auto total = weight.sum(-1, true);  // [B, H, T, 1]
  const auto none = total == 0;
  const auto safe = total.masked_fill(none, 1);
  const auto lse = (at::log(safe) + shift).masked_fill(none, kMinusInfinity).squeeze(-1).transpose(1, 2);
  const auto out = at::einsum("bhts,bshv->bthv", {weight / safe, value});
  const auto result =
      v.scalar_type() == at::kChar ? q.scalar_type() : at::promote_types(q.scalar_type(), v.scalar_type());
  return {out.to(result), lse.contiguous()};
}

}  // namespace weft::ops::reference
