// The normalizer of a tokenizer.json: NFC, NFD, NFKC, NFKD, Lowercase, Strip, StripAccents, Replace, Prepend,
// BertNormalizer, Nmt, Precompiled, ByteLevel, Sequence.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "io/json_place.h"

namespace weft {

// Text on its way through the steps.
struct NormalizedText {
  std::string text;             // valid UTF-8
  bool begins_original = true;  // whether its first character stems from the first one that was put in
};

class Normalizer {
 public:
  Normalizer() = default;  // leaves text alone
  // Unsupported names a type that weft lacks.
  explicit Normalizer(const JsonPlace& place);

  // `text` is valid UTF-8.
  std::string apply(std::string text) const { return run({std::move(text)}).text; }
  NormalizedText run(NormalizedText text) const;
  bool empty() const { return steps_.empty(); }
  // What it does, the same for equal definitions.
  const std::string& description() const { return description_; }

 private:
  void add(const JsonPlace& place, int depth);
  void add_plain(const std::string& type, const JsonPlace& place);
  std::vector<std::function<void(NormalizedText&)>> steps_;
  std::string description_;
};

}  // namespace weft
