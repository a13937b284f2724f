// Regular expressions over UTF-8 with Unicode classes. Patterns are in the dialect of tokenizer.json
// (Oniguruma, Ruby syntax) and are run by PCRE2; where the two dialects disagree the pattern is rewritten or
// refused.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace weft {

class Regex {
 public:
  // `where` names the place of the pattern in messages. InputError for a pattern that is wrong, Unsupported
  // for one whose meaning differs between the dialects.
  Regex(const std::string& pattern, const std::string& where);

  // Calls `found(begin, end)` for every match in valid UTF-8, from left to right, without overlap.
  // Thread-safe.
  void for_each_match(std::string_view text, const std::function<void(size_t, size_t)>& found) const;

  // The pattern in the dialect of PCRE2, for tests.
  const std::string& translated() const { return translated_; }
  // A pattern that matches exactly `literal`.
  static std::string quote(std::string_view literal);

 private:
  std::string where_, translated_;
  std::shared_ptr<void> code_;
};

// Rewrites a pattern of Oniguruma for PCRE2 (UTF, UCP, MULTILINE, newline = LF). Throws as the constructor
// does.
std::string translate_pattern(std::string_view pattern, const std::string& where);

}  // namespace weft
