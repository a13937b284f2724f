// The pre-tokenizer of a tokenizer.json: cuts text into the pieces that the model sees. ByteLevel, Whitespace,
// WhitespaceSplit, BertPreTokenizer, Metaspace, CharDelimiterSplit, Punctuation, Digits, Split, UnicodeScripts,
// FixedLength, Sequence.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/json_place.h"
#include "io/tokenizers/normalizer.h"
#include "io/tokenizers/regex.h"

namespace weft {

// Which parts the matches of a pattern become.
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

class PreTokenizer {
 public:
  PreTokenizer() = default;  // the whole text is one piece
  // InputError names what is not understood, Unsupported a type that weft lacks.
  explicit PreTokenizer(const JsonPlace& place);
  // Pieces are the matches of the pattern and what lies between them, taken as bytes.
  static PreTokenizer of_bytes(const std::string& pattern, const std::string& where, RegexDialect dialect);

  // The pieces of valid UTF-8 text; with bytes() they are bytes, not letters. Empty pieces are left out.
  std::vector<std::string> pieces(NormalizedText text) const;
  // Whether the pieces are bytes whose letters the model has: the last step is ByteLevel.
  bool bytes() const { return byte_level_; }
  const std::string& description() const { return description_; }

  struct Piece {
    std::string text;
    bool begins_original;  // whether it begins where the original text does
  };
  using Pieces = std::vector<Piece>;

 private:
  // One piece into the pieces that it becomes.
  struct Step {
    std::function<void(Piece&&, Pieces&)> cut;
    bool byte_level = false;  // what follows sees letters
  };
  void add(const JsonPlace& place, int depth);
  bool add_splitting(const std::string& type, const JsonPlace& place);
  void add_byte_level(const JsonPlace& place);

  std::vector<Step> steps_;
  bool byte_level_ = false;
  std::string description_;
};

// Cuts `text` at the matches of `pattern`; for tests.
std::vector<std::string> split_by(std::string_view text, const Regex& pattern, SplitBehavior behavior,
                                  bool invert);

// GPT-2's pattern, what ByteLevel with use_regex cuts by.
extern const char* const kByteLevelPattern;

}  // namespace weft
