// What a run trains and validates on, prepared once in the run's folder:
//   data/tokenizer.json   learned from the training text, or a copy
//   data/train.tokens     data/valid.tokens
//   valid.txt             the text that valid_fraction cut off (valid.jsonl for JSON lines)
//   data/prepared.yaml    what all this was made from; written last
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/progress.h"
#include "io/datasets/token_file.h"
#include "io/tokenizers/tokenizer.h"
#include "train/recipe.h"

namespace weft {

struct Corpus {
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const TokenFile> train;
  std::shared_ptr<const TokenFile> valid;  // null when the recipe has no validation
  std::string held_out;                    // path of the text that was cut off, or ""
  // Sums over all of both token files: equal for equal data, wherever it lies. Reads them once, about 1 GB/s.
  std::string fingerprint() const;
};

// What can be checked of data and tokenizer before anything is made: files that are absent (with the recipe's
// hint), folders or unreadable, token files among text or of another tokenizer, a tokenizer or pattern that
// cannot be read, a vocabulary of the model that is too small. InputError.
void check_corpus(const Recipe& recipe);

// Reads the recipe's files, or takes what an earlier call left in `run_folder` when it was made from the
// same. The recipe has passed check_corpus. InputError for text that cannot be read and for training or
// validation text that is empty. Interrupted when `stop`, asked between documents and merges, says true; the
// next call then begins again.
Corpus prepare_corpus(const Recipe& recipe, const std::string& run_folder, LineOutput& out,
                      const std::function<bool()>& stop = {});

}  // namespace weft
