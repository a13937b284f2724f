// The pre-tokenizer of a tokenizer.json: cuts text into the pieces inside which merges happen. ByteLevel,
// Split, Digits, Punctuation, Sequence.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizers/json_place.h"
#include "io/tokenizers/regex.h"

namespace weft {

// Which parts the matches of a pattern become.
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

class PreTokenizer {
 public:
  // InputError names what is not understood. Unsupported when no ByteLevel is among the steps.
  explicit PreTokenizer(const JsonPlace& place);

  // The pieces of valid UTF-8 text, as bytes (not as letters). Empty pieces are left out.
  std::vector<std::string> pieces(std::string_view text) const;
  const std::string& description() const { return description_; }

 private:
  // With a pattern: cut by it. `byte_level`: put a space in front if asked, cut by the pattern if there is
  // one, then turn bytes into letters; what follows sees letters.
  struct Step {
    std::shared_ptr<const Regex> pattern = nullptr;
    SplitBehavior behavior = SplitBehavior::isolated;
    bool invert = false, byte_level = false, prefix_space = false;
  };
  void add(const JsonPlace& place, int depth);
  void add_split(const JsonPlace& place);
  void add_byte_level(const JsonPlace& place);
  void add_pattern(const std::string& pattern, SplitBehavior behavior, bool invert, const std::string& where);

  std::vector<Step> steps_;
  std::string description_;
};

// Cuts `text` at the matches of `pattern`; for tests.
std::vector<std::string> split_by(std::string_view text, const Regex& pattern, SplitBehavior behavior,
                                  bool invert);

// GPT-2's pattern, what ByteLevel with use_regex cuts by.
extern const char* const kByteLevelPattern;

}  // namespace weft
