#include "ops/attention/mask_tables.h"

#include <algorithm>
#include <limits>

#include "base/error.h"

namespace weft::ops {
namespace {

using kernels::KeyRange;
using kernels::kKeyBlock;

constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();

// The entries of a [B, N] tensor in 32 bits, `lowest` standing for anything below it; or, for an undefined one, first
// + step (i mod N).
class Indices {
 public:
  Indices(const char* name, const at::Tensor& x, int64_t count, int64_t first, int64_t step, int64_t lowest)
      : x_(x.defined() ? x.contiguous() : x), count_(count), first_(first), step_(step), lowest_(lowest) {
    if (!x.defined() || x.numel() == 0) return;
    data_ = x_.const_data_ptr<int64_t>();
    const int64_t most = *std::max_element(data_, data_ + x_.numel());
    require(most < kLargest, "attention: {} holds {}; expected less than 2^31 - 1", name, most);
  }
  int32_t operator()(int64_t i) const {
    const int64_t value = data_ ? data_[i] : first_ + step_ * (i % count_);
    return static_cast<int32_t>(std::max(value, lowest_));
  }
  // Entries [i, i + count), which are of one sequence.
  void copy(int64_t i, int64_t count, int32_t* to) const {
    if (data_) {
      for (int64_t j = 0; j < count; ++j) to[j] = static_cast<int32_t>(std::max(data_[i + j], lowest_));
    } else {
      const int64_t begin = first_ + step_ * (i % count_);
      for (int64_t j = 0; j < count; ++j) to[j] = static_cast<int32_t>(std::max(begin + step_ * j, lowest_));
    }
  }

 private:
  at::Tensor x_;
  const int64_t* data_ = nullptr;
  int64_t count_, first_, step_, lowest_;
};

// [5, B, T] as MaskTables::queries.
at::Tensor query_limits(const Mask& mask, int64_t batch, int64_t queries, int64_t keys) {
  const Indices position("q_positions", mask.q_positions, queries, keys - queries, 1, -1);
  const Indices segment("q_segments", mask.q_segments, queries, 0, 0, -kLargest);
  const Indices prefix("q_prefix", mask.q_prefix, queries, 0, 0, 0);
  const Indices range("q_range", mask.q_range, 2 * queries, 0, 0, -1);
  const int64_t count = batch * queries;
  const auto table = at::empty({5, batch, queries}, at::kInt);
  int32_t* to = table.mutable_data_ptr<int32_t>();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t at = position(i);
    int64_t high = mask.causal ? at : kLargest,
            low = mask.window > 0 ? std::max<int64_t>(at - mask.window, -1) : -1;
    if (mask.q_range.defined()) low = std::max(0, range(2 * i)) - int64_t{1}, high = range(2 * i + 1);
    const int64_t sinks = std::min(mask.sinks, high + 1);
    to[i] = static_cast<int32_t>(high);
    to[count + i] = static_cast<int32_t>(low);
    to[2 * count + i] = segment(i);
    to[3 * count + i] = static_cast<int32_t>(std::min(kLargest, std::max<int64_t>(prefix(i), sinks)));
    to[4 * count + i] = static_cast<int32_t>(at);
  }
  return table;
}

// Smallest and largest of the entries whose slot is filled; without branches, so that the compiler makes vectors of it.
void bounds(const int32_t* x, const int32_t* positions, int32_t& least, int32_t& most) {
  least = std::numeric_limits<int32_t>::max(), most = std::numeric_limits<int32_t>::min();
  for (int64_t j = 0; j < kKeyBlock; ++j) {
    const bool filled = positions[j] >= 0;
    least = std::min(least, filled ? x[j] : std::numeric_limits<int32_t>::max());
    most = std::max(most, filled ? x[j] : std::numeric_limits<int32_t>::min());
  }
}

KeyRange range_of(const int32_t* positions, const int32_t* segments, const int32_t* phases) {
  KeyRange r{};
  bounds(positions, positions, r.first_position, r.last_position);
  bounds(segments, positions, r.first_segment, r.last_segment);
  bounds(phases, positions, r.first_phase, r.last_phase);
  for (int64_t j = 0; j < kKeyBlock; ++j) r.empty_slots += positions[j] < 0;
  return r;
}

// The phase that head h sees is the one that its offset brings to stride - 1.
at::Tensor head_phases(const Mask::Stripes& stripes, int64_t heads) {
  if (stripes.block == 0) return {};
  const Indices offset("stripes.offsets", stripes.offsets, heads, 0, 0, 0);
  const auto table = at::empty({heads}, at::kInt);
  for (int64_t h = 0; h < heads; ++h)
    table.mutable_data_ptr<int32_t>()[h] =
        static_cast<int32_t>(stripes.stride - 1 - offset(h) % stripes.stride);
  return table;
}

}  // namespace

MaskTables make_mask_tables(const Mask& mask, int64_t batch, int64_t queries, int64_t keys, int64_t heads) {
  const int64_t blocks = (keys + kKeyBlock - 1) / kKeyBlock;
  MaskTables tables{.queries = query_limits(mask, batch, queries, keys),
                    .keys = at::empty({3, batch, blocks, kKeyBlock}, at::kInt),
                    .ranges = at::empty(
                        {batch, blocks, static_cast<int64_t>(sizeof(KeyRange) / sizeof(int32_t))}, at::kInt),
                    .phases = head_phases(mask.stripes, heads),
                    .tree = mask.q_tree.defined() ? mask.q_tree.contiguous() : at::Tensor(),
                    .tree_begin = mask.q_tree.defined() ? mask.tree_begin.contiguous() : at::Tensor()};
  const Indices position("k_positions", mask.k_positions, keys, 0, 1, -1);
  const Indices segment("k_segments", mask.k_segments, keys, 0, 0, -kLargest);
  int32_t* positions = tables.keys.mutable_data_ptr<int32_t>();
  int32_t* segments = positions + batch * blocks * kKeyBlock;
  int32_t* phases = segments + batch * blocks * kKeyBlock;
  auto* ranges = reinterpret_cast<KeyRange*>(tables.ranges.mutable_data_ptr<int32_t>());
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t to = (b * blocks + block) * kKeyBlock;
      const int64_t count = std::min(kKeyBlock, keys - block * kKeyBlock);
      position.copy(b * keys + block * kKeyBlock, count, positions + to);
      segment.copy(b * keys + block * kKeyBlock, count, segments + to);
      std::fill(positions + to + count, positions + to + kKeyBlock, -1);
      std::fill(segments + to + count, segments + to + kKeyBlock, 0);
      std::fill_n(phases + to, kKeyBlock, -1);
      for (int64_t j = 0; mask.stripes.block > 0 && j < count; ++j)
        if (positions[to + j] >= 0)
          phases[to + j] = static_cast<int32_t>(positions[to + j] / mask.stripes.block % mask.stripes.stride);
      ranges[b * blocks + block] = range_of(positions + to, segments + to, phases + to);
    }
  return tables;
}

void use_mask_tables(kernels::AttentionProblem& p, const MaskTables& tables) {
  const int64_t rows = p.batch * p.queries, slots = p.batch * p.key_blocks() * kKeyBlock;
  p.q_high = tables.queries.const_data_ptr<int32_t>();
  p.q_low = p.q_high + rows;
  p.q_segment = p.q_low + rows;
  p.q_prefix = p.q_segment + rows;
  p.q_position = p.q_prefix + rows;
  p.k_position = tables.keys.const_data_ptr<int32_t>();
  p.k_segment = p.k_position + slots;
  if (tables.phases.defined()) {
    p.k_phase = p.k_segment + slots;
    p.head_phase = tables.phases.const_data_ptr<int32_t>();
  }
  p.ranges = reinterpret_cast<const KeyRange*>(tables.ranges.const_data_ptr<int32_t>());
  if (tables.tree.defined()) {
    p.q_tree = tables.tree.const_data_ptr<int64_t>();
    p.tree_begin = tables.tree_begin.const_data_ptr<int64_t>();
    p.tree_words = tables.tree.size(2);
  }
}

}  // namespace weft::ops
