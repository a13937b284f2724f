// Rows of equal length cut from the concatenated documents of a TokenFile, for training and for validation.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>

#include "io/datasets/token_file.h"

namespace weft {

// One batch. B rows of T tokens.
struct TokenBatch {
  at::Tensor tokens;  // [B, T] int64
  at::Tensor
      targets;  // [B, T] int64: the next token, or ops::kIgnoreTarget at the end of a document and in padding
  at::Tensor starts;  // [B, T] bool: a document begins here. Also true at 0 of every row, since no state is
                      // carried in
};

// Where a reader stands; enough to go on with exactly the same batches.
struct BatchPosition {
  int64_t epoch = 0;
  int64_t index = 0;  // rows of this epoch that are used up
  bool operator==(const BatchPosition&) const = default;
};

struct PackedOptions {
  enum class Order {
    // Each epoch cuts the circle of all tokens at a random offset into floor(tokens / length) rows and
    // shuffles them.
    // Batches are always full and may span two epochs.
    shuffled,
    // From the first token to the last, every token once; the last row is padded with id 0 and no targets,
    // the last
    // batch has the rows that are left.
    sequential,
  };
  int64_t length = 1024;  // T
  int64_t rows = 8;       // B, of this process
  uint64_t seed = 1;
  Order order = Order::shuffled;
  int64_t part = 0, parts = 1;  // this process takes rows [part * B, (part + 1) * B) of each step's parts * B
};

// Deterministic: batch number n depends on the file, the options and n only. Memory: one batch.
class PackedBatches {
 public:
  // InputError for an empty file, one shorter than a row (shuffled), and `vocab_size` (of the model) below
  // the file's.
  PackedBatches(std::shared_ptr<const TokenFile> file, const PackedOptions& options,
                int64_t vocab_size = INT64_MAX);

  // The next batch on the CPU. With sequential order the epoch's last batch is followed by the next epoch's
  // first; in a process whose part of the last step is empty B is 0.
  TokenBatch next();
  int64_t rows_per_epoch() const { return rows_per_epoch_; }
  // Calls of next() in one epoch of sequential order; for shuffled order rounded up.
  int64_t batches_per_epoch() const;

  BatchPosition position() const { return position_; }
  // InputError for a position that this file and these options cannot have.
  void seek(const BatchPosition& position);

 private:
  int64_t row_begin(const BatchPosition& at) const;
  void fill_row(int64_t begin, int64_t* tokens, int64_t* targets, bool* starts) const;
  void advance(BatchPosition& at, int64_t rows) const;

  std::shared_ptr<const TokenFile> file_;
  PackedOptions options_;
  int64_t rows_per_epoch_;
  BatchPosition position_;
};

}  // namespace weft
