// The masks that are more than a few numbers.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "base/error.h"
#include "ops/attention/attention.h"
#include "ops/shape.h"

namespace weft::ops {
namespace {

at::Tensor count_to(int64_t n, const at::Tensor& like) {
  return at::arange(n, at::TensorOptions(at::kLong).device(like.device()));
}

// Positions of `slots` cache slots, of which the first prefix[b] are filled, then of `tail` tokens numbered on
// from the prefix. [B, slots + tail]
at::Tensor cache_positions(const at::Tensor& prefix, int64_t slots, int64_t tail) {
  const auto slot = count_to(slots, prefix).unsqueeze(0);
  const auto filled = at::where(slot < prefix.unsqueeze(1), slot, -1);
  return at::cat({filled, prefix.unsqueeze(1) + count_to(tail, prefix)}, 1);
}

void check_prefix(const char* op, const at::Tensor& prefix, int64_t slots) {
  require_shape(op, "prefix", prefix, {-1});
  require(prefix.scalar_type() == at::kLong, "{}: prefix has type {}, expected int64", op,
          c10::toString(prefix.scalar_type()));
  const bool fits = prefix.numel() == 0 || (prefix.min().item<int64_t>() >= 0 &&
                                            (slots < 0 || prefix.max().item<int64_t>() <= slots));
  require(fits, "{}: a prefix is outside 0 to {}", op,
          slots < 0 ? "the number of keys" : std::to_string(slots));
}

// What happens before positions inside documents can be told: [B, S] position and number of the document.
std::pair<at::Tensor, at::Tensor> documents(int64_t batch, int64_t tokens, const at::Tensor& starts) {
  const auto options = at::TensorOptions(at::kLong);
  if (!starts.defined()) {
    const auto position = at::arange(tokens, options).expand({batch, tokens});
    return {position, at::zeros_like(position)};
  }
  const auto index = at::arange(tokens, options.device(starts.device())).expand({batch, tokens});
  const auto begin = std::get<0>(at::cummax(at::where(starts, index, 0), 1));
  return {index - begin, starts.to(at::kLong).cumsum(1)};
}

}  // namespace

Mask on_device(Mask mask, at::Device device) {
  for (at::Tensor* x : {&mask.q_positions, &mask.k_positions, &mask.q_segments, &mask.k_segments,
                        &mask.q_range, &mask.q_prefix, &mask.q_tree, &mask.tree_begin, &mask.stripes.offsets})
    if (x->defined()) *x = x->to(device);
  return mask;
}

Mask prefix_mask(const at::Tensor& prefix, int64_t queries) {
  check_prefix("prefix_mask", prefix, -1);
  return {.q_prefix = prefix.unsqueeze(1).expand({prefix.size(0), queries})};
}

Mask block_stride_mask(int64_t batch, int64_t queries, int64_t keys, int64_t block, int64_t local,
                       int64_t stride, int64_t sinks, const at::Tensor& offsets) {
  require(block >= 1 && local >= 1 && stride >= 1 && sinks >= 0,
          "block_stride_mask: block is {}, local {}, stride {} and sinks {}; expected at least 1, 1, 1 and 0",
          block, local, stride, sinks);
  const auto position = at::arange(keys - queries, keys, at::TensorOptions(at::kLong));
  const auto first = ((position.div(block, "floor") - (local - 1)) * block).clamp_min(0);
  return {.sinks = sinks * block,
          .q_range = at::stack({first, position}, 1).expand({batch, queries, 2}),
          .stripes = {.block = block, .stride = stride, .offsets = offsets}};
}

Mask tidar_training_mask(int64_t batch, int64_t tokens, int64_t block, const at::Tensor& starts) {
  require(block >= 1, "tidar_training_mask: block is {}, expected at least 1", block);
  if (starts.defined()) require_shape("tidar_training_mask", "starts", starts, {batch, tokens});
  const auto [position, document] = documents(batch, tokens, starts);
  const auto begin = position.div(block, "floor") * block;  // of the block, in the document
  const auto clean_range = at::stack({at::zeros_like(position), position}, 2);
  const auto mask_range =
      at::stack({begin, begin + (block - 1)}, 2) + tokens;  // masks stand behind all clean ones
  Mask mask;
  mask.q_range = at::cat({clean_range, mask_range}, 1);
  mask.q_prefix = at::cat({at::zeros_like(begin), begin}, 1);
  mask.k_positions = at::cat({position, position + tokens}, 1);
  mask.q_positions = mask.k_positions;
  if (starts.defined()) mask.q_segments = mask.k_segments = at::cat({document, document}, 1);
  return mask;
}

Mask tidar_decode_mask(const at::Tensor& prefix, int64_t slots, int64_t block) {
  check_prefix("tidar_decode_mask", prefix, slots);
  require(block >= 1, "tidar_decode_mask: block is {}, expected at least 1", block);
  const auto token = count_to(block * (block + 1), prefix);
  const auto row = token.div(block, "floor"), column = token.remainder(block);
  // Row 0 sees the drafts up to its own; row j the drafts before d_j as a prefix, and all of itself.
  const auto first = row * block, last = at::where(row == 0, column, first + (block - 1));
  const auto drafts = at::where(row == 0, 0, row);
  const int64_t batch = prefix.size(0), tokens = token.numel();
  Mask mask;
  mask.q_range = at::stack({first, last}, 1).unsqueeze(0) + prefix.view({batch, 1, 1});
  mask.q_prefix = prefix.unsqueeze(1) + drafts;
  mask.k_positions = cache_positions(prefix, slots, tokens);
  mask.q_positions = mask.k_positions.narrow(1, slots, tokens);
  return mask;
}

Mask tree_mask(const at::Tensor& parents, const at::Tensor& prefix, int64_t slots) {
  require_shape("tree_mask", "parents", parents, {prefix.size(0), -1});
  require(parents.scalar_type() == at::kLong, "tree_mask: parents have type {}, expected int64",
          c10::toString(parents.scalar_type()));
  check_prefix("tree_mask", prefix, slots);
  const int64_t batch = parents.size(0), nodes = parents.size(1), words = (nodes + 63) / 64;
  const auto list = parents.to(at::kCPU).contiguous();
  const auto bits = at::zeros({batch, nodes, words}, at::kLong);
  const int64_t* parent = list.const_data_ptr<int64_t>();
  int64_t* seen = bits.mutable_data_ptr<int64_t>();
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t n = 0; n < nodes; ++n) {
      const int64_t up = parent[b * nodes + n];
      require(up >= -1 && up < n, "tree_mask: node {} of sequence {} has the parent {}; expected -1 to {}", n,
              b, up, n - 1);
      int64_t* own = seen + (b * nodes + n) * words;
      if (up >= 0) std::copy_n(seen + (b * nodes + up) * words, words, own);
      own[n / 64] |= static_cast<int64_t>(uint64_t{1} << (n % 64));
    }
  Mask mask;
  mask.q_tree = bits.to(parents.device());
  mask.tree_begin = prefix;
  mask.q_prefix = prefix.unsqueeze(1).expand({batch, nodes});
  mask.q_range = at::cat(
      {at::ones({batch, nodes, 1}, prefix.options()), at::zeros({batch, nodes, 1}, prefix.options())}, 2);
  mask.k_positions = cache_positions(prefix, slots, nodes);
  mask.q_positions = mask.k_positions.narrow(1, slots, nodes);
  return mask;
}

}  // namespace weft::ops
