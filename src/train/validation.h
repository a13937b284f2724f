// The loss of a model on held-out tokens, in nats per token and bits per byte of text.
#pragma once

#include <cstdint>
#include <functional>

#include "io/datasets/token_file.h"
#include "io/tokenizers/tokenizer.h"
#include "nn/model.h"

namespace weft {

struct Validation {
  double nats = 0;     // of all scored tokens together
  int64_t tokens = 0;  // scored
  int64_t bytes = 0;   // of text that they stand for; special tokens stand for none
  double loss() const { return tokens ? nats / static_cast<double>(tokens) : 0; }
  double bits_per_byte() const;
};

struct ValidationOptions {
  int64_t length = 256;  // T, tokens that a window sees
  int64_t overlap = 0;   // of them, already scored by the window before: context only. 0 <= overlap < length
  int64_t rows = 8;      // windows of one forward pass
  int64_t batches = 0;   // forward passes, spread evenly over the file; 0: all windows
};

// Every window starts from an empty state. The first token of a document is not scored: nothing stands before
// it. `progress` is called with the share done, 0 to 1.
Validation validate(Model& model, const TokenFile& file, const Tokenizer& tokenizer,
                    const ValidationOptions& options, const std::function<void(double)>& progress = {});

}  // namespace weft
