#include "io/datasets/packed_batches.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "base/error.h"
#include "io/datasets/permutation.h"
#include "ops/loss/loss.h"

namespace weft {

namespace {

using Order = PackedOptions::Order;

void check_packing(const TokenFile& file, const PackedOptions& options, int64_t vocab_size) {
  require(options.length >= 1, "the length of a row must be at least 1, found {}", options.length);
  require(options.rows >= 1, "a batch must have at least 1 row, found {}", options.rows);
  require(options.parts >= 1 && options.part >= 0 && options.part < options.parts,
          "part {} of {} parts: expected 0 <= part < parts", options.part, options.parts);
  require(vocab_size >= file.vocab_size(),
          "{}: its ids go up to {}, but the model's vocabulary has {} ids; use the tokenizer that the model "
          "was made for",
          file.path(), file.vocab_size() - 1, vocab_size);
  require(options.order == Order::sequential || file.size() >= options.length,
          "{}: has {} tokens, fewer than one row of {}; use more text or shorter rows", file.path(),
          file.size(), options.length);
}

uint64_t epoch_seed(uint64_t seed, int64_t epoch) {
  return mix_bits(seed ^ mix_bits(static_cast<uint64_t>(epoch)));
}

}  // namespace

PackedBatches::PackedBatches(std::shared_ptr<const TokenFile> file, const PackedOptions& options,
                             int64_t vocab_size)
    : file_(std::move(file)), options_(options) {
  check_packing(*file_, options, vocab_size);
  rows_per_epoch_ = file_->size() / options.length;
  if (options.order == Order::sequential)
    rows_per_epoch_ = (file_->size() + options.length - 1) / options.length;
}

int64_t PackedBatches::batches_per_epoch() const {
  const int64_t step = options_.rows * options_.parts;
  return (rows_per_epoch_ + step - 1) / step;
}

void PackedBatches::seek(const BatchPosition& position) {
  require(position.epoch >= 0 && position.index >= 0 && position.index < rows_per_epoch_,
          "{}: epoch {}, row {} is no position among {} rows an epoch; was it saved with other data or "
          "another row "
          "length?",
          file_->path(), position.epoch, position.index, rows_per_epoch_);
  position_ = position;
}

int64_t PackedBatches::row_begin(const BatchPosition& at) const {
  if (options_.order == Order::sequential) return at.index * options_.length;
  const uint64_t seed = epoch_seed(options_.seed, at.epoch);
  const auto offset = static_cast<int64_t>(mix_bits(seed) % static_cast<uint64_t>(file_->size()));
  const int64_t row = Permutation(rows_per_epoch_, seed).at(at.index);
  return (offset + row * options_.length) % file_->size();
}

// `begin` + j counts on the circle of all tokens; sequential rows stop at the end instead.
void PackedBatches::fill_row(int64_t begin, int64_t* tokens, int64_t* targets, bool* starts) const {
  const int64_t length = options_.length, size = file_->size();
  const int64_t first = std::min(length, size - begin);
  const int64_t wrapped = options_.order == Order::sequential ? 0 : length - first;
  file_->read(begin, first, tokens);
  file_->read(0, wrapped, tokens + first);
  std::fill(tokens + first + wrapped, tokens + length, 0);
  std::fill(starts, starts + length, false);
  starts[0] = true;
  // Padding is a segment of its own, so that nothing real depends on it.
  if (first < length) starts[first] = true;
  const auto mark = [&](int64_t from, int64_t count, int64_t at) {
    for (int64_t d = file_->first_document_from(from);
         d < file_->documents() && file_->start(d) < from + count; ++d)
      starts[at + file_->start(d) - from] = true;
  };
  mark(begin, first, 0);
  mark(0, wrapped, first);
  for (int64_t j = 0; j + 1 < length; ++j) targets[j] = starts[j + 1] ? ops::kIgnoreTarget : tokens[j + 1];
  const int64_t next = begin + length;
  const int64_t after = next < size ? next : options_.order == Order::sequential ? -1 : next % size;
  const bool document_goes_on = after > 0 && file_->start(file_->first_document_from(after)) != after;
  targets[length - 1] = ops::kIgnoreTarget;
  if (document_goes_on) file_->read(after, 1, &targets[length - 1]);
  if (first + wrapped < length) std::fill(targets + first + wrapped, targets + length, ops::kIgnoreTarget);
}

void PackedBatches::advance(BatchPosition& at, int64_t rows) const {
  at.index += rows;
  at.epoch += at.index / rows_per_epoch_;
  at.index %= rows_per_epoch_;
}

TokenBatch PackedBatches::next() {
  BatchPosition at = position_;
  int64_t rows = options_.rows, step = options_.rows * options_.parts, skip = options_.part * options_.rows;
  if (options_.order == Order::sequential) {
    step = std::min(step, rows_per_epoch_ - at.index);
    rows = std::clamp<int64_t>(step - skip, 0, rows);
    skip = std::min(skip, step);
  }
  const int64_t length = options_.length;
  TokenBatch batch{at::empty({rows, length}, at::kLong), at::empty({rows, length}, at::kLong),
                   at::empty({rows, length}, at::kBool)};
  advance(at, skip);
  for (int64_t r = 0; r < rows; ++r, advance(at, 1))
    fill_row(row_begin(at), batch.tokens.mutable_data_ptr<int64_t>() + r * length,
             batch.targets.mutable_data_ptr<int64_t>() + r * length,
             batch.starts.mutable_data_ptr<bool>() + r * length);
  advance(position_, step);
  return batch;
}

}  // namespace weft
