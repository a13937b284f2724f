// Tokens that are found in the text before anything else looks at it ("<|endoftext|>"), with the flags that a
// tokenizer.json gives them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "io/tokenizers/json_place.h"
#include "io/tokenizers/normalizer.h"

namespace weft {

struct AddedToken {
  int64_t id = 0;
  std::string content;
  bool single_word = false;             // only between characters that are not part of a word
  bool lstrip = false, rstrip = false;  // takes the white space before or after with it
  bool normalized = false;              // looked for in the normalized text
  bool special = false;
};

// Strings with a number each; finds the longest one that stands at a place.
class Trie {
 public:
  void insert(std::string_view text, size_t value);
  // The number of the longest entry that `text` has at `at`, and its length; length 0 when none.
  std::pair<size_t, size_t> longest(std::string_view text, size_t at) const;
  bool empty() const { return nodes_.size() <= 1; }

 private:
  struct Node {
    std::map<unsigned char, size_t> next;
    size_t value = SIZE_MAX;
  };
  std::vector<Node> nodes_ = std::vector<Node>(1);
};

// A part of a text: an added token, or text (id < 0) still to be tokenized.
struct TextPart {
  int64_t id = -1;
  std::string text;
};

class AddedTokens {
 public:
  AddedTokens() = default;
  AddedTokens(const JsonPlace& place, const Normalizer& normalizer);

  // Cuts valid UTF-8 into added tokens and normalized text between them. Without parse_special, special
  // tokens are text.
  std::vector<TextPart> split(std::string_view text, const Normalizer& normalizer, bool parse_special) const;
  const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  void cut(std::string_view text, const Trie& trie, bool parse_special, std::vector<TextPart>& parts) const;
  std::vector<AddedToken> tokens_;
  Trie raw_, normalized_;  // values are indices into tokens_
};

}  // namespace weft
