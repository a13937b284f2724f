// Tokens that are found in the text before anything else looks at it ("<|endoftext|>"), with the flags that a
// tokenizer.json gives them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "io/json_place.h"
#include "io/tokenizers/normalizer.h"
#include "io/tokenizers/trie.h"

namespace weft {

struct AddedToken {
  int64_t id = 0;
  std::string content;
  bool single_word = false;             // only between characters that are not part of a word
  bool lstrip = false, rstrip = false;  // takes the white space before or after with it
  bool normalized = false;              // looked for in the normalized text
  bool special = false;
};

// The flags and the content of an object; `id` is left alone.
AddedToken read_added_token(const JsonPlace& place);
// "added_tokens" of a tokenizer.json.
std::vector<AddedToken> read_added_tokens(const JsonPlace& place);

// A part of a text: an added token, or text (id < 0) still to be tokenized.
struct TextPart {
  int64_t id = -1;
  NormalizedText text;
};

class AddedTokens {
 public:
  AddedTokens() = default;
  AddedTokens(std::vector<AddedToken> tokens, const Normalizer& normalizer);

  // Cuts valid UTF-8 into added tokens and normalized text between them. Without parse_special, special
  // tokens are text. `begins`: the text is the begin of what is encoded.
  std::vector<TextPart> split(std::string_view text, const Normalizer& normalizer, bool parse_special,
                              bool begins) const;
  const std::vector<AddedToken>& tokens() const { return tokens_; }

 private:
  void cut(const NormalizedText& text, const Trie& trie, bool parse_special,
           std::vector<TextPart>& parts) const;
  std::vector<AddedToken> tokens_;
  Trie raw_, normalized_;  // values are indices into tokens_
};

}  // namespace weft
