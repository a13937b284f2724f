// Log-likelihoods of texts given others, as the lm-evaluation-harness defines them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "io/tokenizers/tokenizer.h"
#include "nn/model.h"

namespace weft {

struct Likelihood {
  double log_probability = 0;  // natural, summed over the continuation's tokens
  bool greedy = true;          // whether each of its tokens is the most likely one
};

struct LikelihoodOptions {
  int64_t max_length = 0;    // tokens that the model may see at a time; 0: as many as there are
  int64_t batch = 16;        // continuations in one call
  int64_t chunk = 512;       // tokens of a context or text in one call
  bool add_special = false;  // whether texts get the special ids that the tokenizer puts around them
  std::optional<int64_t>
      prefix_id;  // stands before an empty context and before a whole text; none: end of text
};

// Where the context ends and the continuation begins, in ids: blanks at the end of the context go to the continuation;
// both are encoded together, and what comes behind as many ids as the context alone has is the continuation.
struct EncodedPair {
  std::vector<int64_t> context, continuation;
};

class LikelihoodScorer {
 public:
  // Keeps references. InputError for a tokenizer that does not fit.
  LikelihoodScorer(Model& model, const Tokenizer& tokenizer, LikelihoodOptions options);

  EncodedPair encode(const std::string& context, const std::string& continuation) const;
  // Of each continuation after the context; equal contexts, those of the call before included, are run once, and the
  // state behind them is forked. InputError for a continuation longer than max_length.
  std::vector<Likelihood> score(const std::string& context, const std::vector<std::string>& continuations);
  // The log-probability of a whole text. With max_length in windows that overlap only where the last one would be short;
  // each token is predicted once. Else by one pass that carries the state on.
  double score_text(const std::string& text);
  std::vector<int64_t> encode(const std::string& text) const;
  // InputError when there is neither a prefix nor an end-of-text token.
  int64_t prefix_id() const;

 private:
  void run_context(const std::vector<int64_t>& ids);
  std::vector<Likelihood> score_batch(const std::vector<std::vector<int64_t>>& continuations) const;
  Likelihood score_truncated(const EncodedPair& pair);

  Model& model_;
  const Tokenizer& tokenizer_;
  LikelihoodOptions options_;
  std::vector<int64_t> context_;  // that state_ and next_ stand behind
  ModelState state_;
  at::Tensor next_;  // log-probabilities of the token after the context [V]
};

}  // namespace weft
