// The normalizer of a tokenizer.json: NFC, NFD, NFKC, NFKD, Prepend, Replace (of a plain string), Sequence.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "io/tokenizers/json_place.h"

namespace weft {

class Normalizer {
 public:
  Normalizer() = default;  // leaves text alone
  // Unsupported names a type that weft lacks.
  explicit Normalizer(const JsonPlace& place);

  // `text` is valid UTF-8.
  std::string apply(std::string text) const;
  bool empty() const { return steps_.empty(); }
  // What it does, the same for equal definitions.
  const std::string& description() const { return description_; }

 private:
  void add(const JsonPlace& place, int depth);
  void add_unicode_form(const std::string& name);
  void add_replace(const JsonPlace& place);
  std::vector<std::function<std::string(std::string)>> steps_;
  std::string description_;
};

}  // namespace weft
