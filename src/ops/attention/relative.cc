#include "ops/attention/relative.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/error.h"
#include "ops/shape.h"

namespace weft::ops {
namespace {

constexpr int64_t kBlock = 128;  // queries

// The heads of one key head together: [B, T, H, C] -> [B, G, (H / G) T, C].
at::Tensor by_key_head(const at::Tensor& x, int64_t groups) {
  return x.unflatten(2, {groups, -1}).permute({0, 2, 3, 1, 4}).flatten(2, 3);
}

at::Tensor slice_of(const at::Tensor& x, int64_t begin, int64_t end) {
  return x.defined() ? x.slice(1, begin, end) : x;
}

// The bias of every pair, [B, T, H, S], for distances [B, T, S].
at::Tensor bias_of(const at::Tensor& relative, const at::Tensor& profiles, const at::Tensor& distance) {
  const int64_t extent = profiles.size(1);
  const auto by_distance = at::matmul(relative, profiles);  // [B, T, H, E]
  const auto index = distance.clamp(0, extent - 1)
                         .unsqueeze(2)
                         .expand({relative.size(0), relative.size(1), relative.size(2), distance.size(2)});
  const auto outside = at::logical_or(distance < 0, distance >= extent).unsqueeze(2);
  return by_distance.gather(3, index).masked_fill(outside, 0);
}

struct Keys {
  at::Tensor k, v, positions;  // [B, S, G, K], [B, S, G, V], [B, S]
};

// One block of queries; visible [B, T, S].
AttentionResult attend(const at::Tensor& q, const at::Tensor& relative, const at::Tensor& profiles,
                       const at::Tensor& q_positions, const Keys& keys, const at::Tensor& visible,
                       double scale) {
  const int64_t groups = keys.k.size(2), queries = q.size(1), heads = q.size(2);
  const auto scores =
      at::matmul(by_key_head(q, groups), keys.k.permute({0, 2, 3, 1})) * scale;  // [B, G, nT, S]
  const auto bias = bias_of(relative, profiles, q_positions.unsqueeze(2) - keys.positions.unsqueeze(1));
  const auto biased = scores.unflatten(2, {heads / groups, queries}).flatten(1, 2) + bias.transpose(1, 2);
  const auto seen = biased.masked_fill(visible.unsqueeze(1).logical_not(),  // [B, H, T, S]
                                       -std::numeric_limits<double>::infinity());
  const auto lse = at::logsumexp(seen, {3});  // [B, H, T]
  const auto none = at::isinf(lse).unsqueeze(-1);
  const auto weights = at::exp(seen - lse.unsqueeze(-1).masked_fill(none, 0));
  const auto out = at::matmul(weights.unflatten(1, {groups, -1}).flatten(2, 3), keys.v.transpose(1, 2));
  return {out.unflatten(2, {heads / groups, queries}).flatten(1, 2).transpose(1, 2), lse.transpose(1, 2)};
}

// Columns [first, last) that any query of the block sees.
std::pair<int64_t, int64_t> columns_of(const at::Tensor& visible) {
  const auto used = visible.flatten(0, 1).any(0).nonzero();
  if (used.numel() == 0) return {0, 0};
  return {used[0].item<int64_t>(), used[-1].item<int64_t>() + 1};
}

void check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& relative,
           const at::Tensor& profiles) {
  require(q.dim() == 4 && k.dim() == 4 && v.dim() == 4 && k.size(3) == q.size(3) && k.size(1) == v.size(1) &&
              q.size(2) % k.size(2) == 0 && k.size(2) == v.size(2),
          "relative_attention: q is {}, k {}, v {}; expected [B, T, H, K], [B, S, G, K] and [B, S, G, V], H "
          "a multiple "
          "of G",
          shape_text(q), shape_text(k), shape_text(v));
  require(relative.dim() == 4 && relative.size(1) == q.size(1) && relative.size(2) == q.size(2) &&
              profiles.dim() == 2 && profiles.size(0) == relative.size(3),
          "relative_attention: relative is {}, profiles {}; expected [B, T, H, R] and [R, E]",
          shape_text(relative), shape_text(profiles));
}

}  // namespace

AttentionResult relative_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   const at::Tensor& relative, const at::Tensor& profiles, const Mask& mask,
                                   double scale) {
  check(q, k, v, relative, profiles);
  const auto type = accumulate_type(q);
  const int64_t batch = q.size(0), tokens = q.size(1), columns = k.size(1);
  if (scale == 0) scale = 1.0 / std::sqrt(static_cast<double>(q.size(3)));
  const auto index = [&](int64_t begin, int64_t end) {
    return at::arange(begin, end, q.options().dtype(at::kLong)).expand({batch, end - begin});
  };
  Mask all = mask;
  if (!all.q_positions.defined()) all.q_positions = index(columns - tokens, columns);
  if (!all.k_positions.defined()) all.k_positions = index(0, columns);

  std::vector<at::Tensor> outs, lses;
  for (int64_t begin = 0; begin < tokens; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, tokens);
    Mask block = all;
    for (auto* part : {&block.q_positions, &block.q_segments, &block.q_range, &block.q_prefix, &block.q_tree})
      *part = slice_of(*part, begin, end);
    const auto visible = reference::visible_keys(block, batch, end - begin, columns, q.device());
    const auto [first, last] = columns_of(visible);
    const Keys keys{k.slice(1, first, last).to(type), v.slice(1, first, last).to(type),
                    all.k_positions.slice(1, first, last)};
    auto part = attend(q.slice(1, begin, end).to(type), relative.slice(1, begin, end).to(type),
                       profiles.to(type), block.q_positions, keys, visible.slice(2, first, last), scale);
    outs.push_back(part.out);
    lses.push_back(part.lse);
  }
  if (outs.empty())
    return {at::empty({batch, 0, q.size(2), v.size(3)}, q.options()),
            at::empty({batch, 0, q.size(2)}, q.options().dtype(type))};
  return {at::cat(outs, 1).to(q.scalar_type()), at::cat(lses, 1)};
}

}  // namespace weft::ops
