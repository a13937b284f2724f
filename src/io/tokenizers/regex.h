// Regular expressions over UTF-8 with Unicode classes, run by PCRE2. Patterns are in the dialect of
// tokenizer.json (Oniguruma, Ruby syntax) or of tiktoken (Rust); where a dialect disagrees with PCRE2 the
// pattern is rewritten or refused.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "io/json_place.h"

namespace weft {

enum class RegexDialect { oniguruma, rust };

class Regex {
 public:
  // `where` names the place of the pattern in messages. InputError for a pattern that is wrong, Unsupported
  // for one whose meaning differs between the dialects.
  Regex(const std::string& pattern, const std::string& where, RegexDialect dialect = RegexDialect::oniguruma);

  // Calls `found(begin, end)` for every match in valid UTF-8, from left to right, without overlap.
  // Thread-safe. InputError when a match takes more than 10 million steps or 512 MB.
  void for_each_match(std::string_view text, const std::function<void(size_t, size_t)>& found) const;

  // The pattern in the dialect of PCRE2, for tests.
  const std::string& translated() const { return translated_; }
  // A pattern that matches exactly `literal`.
  static std::string quote(std::string_view literal);

 private:
  std::string where_, translated_;
  std::shared_ptr<void> code_;
};

// {"String": literal} or {"Regex": pattern} of a tokenizer.json.
Regex read_pattern(const JsonPlace& place);

// Rewrites a pattern for PCRE2 (UTF, UCP, newline = LF; MULTILINE for Oniguruma's dialect). Throws as the
// constructor does.
std::string translate_pattern(std::string_view pattern, const std::string& where,
                              RegexDialect dialect = RegexDialect::oniguruma);

}  // namespace weft
