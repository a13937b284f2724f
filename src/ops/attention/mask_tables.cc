#include "ops/attention/mask_tables.h"

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace weft::ops {
namespace {

using kernels::KeyRange;
using kernels::kKeyBlock;

constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();

// Reads entry i of a [B, N] tensor, or of what stands for an undefined one: first + i mod N.
class Indices {
 public:
  Indices(const char* name, const at::Tensor& x, int64_t count, int64_t first, int64_t step)
      : name_(name), x_(x.defined() ? x.contiguous() : x), count_(count), first_(first), step_(step) {
    data_ = x.defined() ? x_.const_data_ptr<int64_t>() : nullptr;
  }
  // In 32 bits; the lowest value stands for anything below it.
  int32_t operator()(int64_t i, int64_t lowest) const {
    const int64_t value = data_ ? data_[i] : first_ + step_ * (i % count_);
    require(value < kLargest, "attention: {} holds {}; expected less than 2^31 - 1", name_, value);
    return static_cast<int32_t>(std::max(value, lowest));
  }

 private:
  const char* name_;
  at::Tensor x_;
  const int64_t* data_;
  int64_t count_, first_, step_;
};

at::Tensor query_limits(const Mask& mask, int64_t batch, int64_t queries, int64_t keys) {
  const Indices position("q_positions", mask.q_positions, queries, keys - queries, 1);
  const Indices segment("q_segments", mask.q_segments, queries, 0, 0);
  const int64_t count = batch * queries;
  const auto table = at::empty({3, batch, queries}, at::kInt);
  int32_t* to = table.mutable_data_ptr<int32_t>();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = position(i, -1);
    to[i] = static_cast<int32_t>(mask.causal ? at : kLargest);
    to[count + i] = static_cast<int32_t>(mask.window > 0 ? std::max<int64_t>(at - mask.window, -1) : -1);
    to[2 * count + i] = segment(i, -kLargest);
  }
  return table;
}

KeyRange range_of(const int32_t* positions, const int32_t* segments) {
  constexpr int32_t kTop = std::numeric_limits<int32_t>::max(), kBottom = std::numeric_limits<int32_t>::min();
  KeyRange r{kTop, kBottom, kTop, kBottom, 0};
  for (int64_t j = 0; j < kKeyBlock; ++j) {
    if (positions[j] < 0) {
      ++r.empty_slots;
      continue;
    }
    r.first_position = std::min(r.first_position, positions[j]);
    r.last_position = std::max(r.last_position, positions[j]);
    r.first_segment = std::min(r.first_segment, segments[j]);
    r.last_segment = std::max(r.last_segment, segments[j]);
  }
  return r;
}

}  // namespace

MaskTables make_mask_tables(const Mask& mask, int64_t batch, int64_t queries, int64_t keys) {
  const int64_t blocks = (keys + kKeyBlock - 1) / kKeyBlock;
  MaskTables tables{
      query_limits(mask, batch, queries, keys), at::empty({2, batch, blocks, kKeyBlock}, at::kInt),
      at::empty({batch, blocks, static_cast<int64_t>(sizeof(KeyRange) / sizeof(int32_t))}, at::kInt)};
  const Indices position("k_positions", mask.k_positions, keys, 0, 1);
  const Indices segment("k_segments", mask.k_segments, keys, 0, 0);
  int32_t* positions = tables.keys.mutable_data_ptr<int32_t>();
  int32_t* segments = positions + batch * blocks * kKeyBlock;
  auto* ranges = reinterpret_cast<KeyRange*>(tables.ranges.mutable_data_ptr<int32_t>());
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t to = (b * blocks + block) * kKeyBlock;
      for (int64_t j = 0; j < kKeyBlock; ++j) {
        const int64_t key = block * kKeyBlock + j;
        const bool exists = key < keys;
        positions[to + j] = exists ? position(b * keys + key, -1) : -1;
        segments[to + j] = exists ? segment(b * keys + key, -kLargest) : 0;
      }
      ranges[b * blocks + block] = range_of(positions + to, segments + to);
    }
  return tables;
}

void use_mask_tables(kernels::AttentionProblem& p, const MaskTables& tables) {
  const int64_t rows = p.batch * p.queries;
  p.q_high = tables.queries.const_data_ptr<int32_t>();
  p.q_low = p.q_high + rows;
  p.q_segment = p.q_low + rows;
  p.k_position = tables.keys.const_data_ptr<int32_t>();
  p.k_segment = p.k_position + p.batch * p.key_blocks() * kKeyBlock;
  p.ranges = reinterpret_cast<const KeyRange*>(tables.ranges.const_data_ptr<int32_t>());
}

}  // namespace weft::ops
