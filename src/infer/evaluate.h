// How well a model predicts a text: bits per byte and perplexity of a file of any length, in constant memory
// (that of the model's state aside: full attention keeps keys and values of the whole document).
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "io/tokenizers/tokenizer.h"
#include "nn/model.h"

namespace weft {

struct Evaluation {
  int64_t documents = 0;
  int64_t tokens = 0;    // predicted ones: all but the first of each document, which has nothing before it
  int64_t bytes = 0;     // of text that the predicted tokens stand for
  double nats = 0;       // sum of -ln p over the predicted tokens
  bool complete = true;  // false when it was cancelled
  double bits_per_byte() const;
  double perplexity() const;  // per token
};

struct EvaluateOptions {
  int64_t chunk = 1024;   // tokens in one call; the state is carried from chunk to chunk
  std::string separator;  // cuts documents; "": the file is one. The state begins anew with each document
  // Told after each chunk: bytes of the file read and in all, and what is known so far.
  std::function<void(int64_t, int64_t, const Evaluation&)> progress;
  std::function<bool()> cancelled;  // asked before each chunk
};

// Special tokens spelled out in the file count as text. InputError for a file that is unreadable or has no
// token to predict and for a tokenizer that does not fit.
Evaluation evaluate(Model& model, const Tokenizer& tokenizer, const std::string& path,
                    const EvaluateOptions& options = {});

}  // namespace weft
