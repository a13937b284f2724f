#include "io/tokenizers/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/error.h"
#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

constexpr uint32_t kMatchSteps = 10'000'000, kMatchKilobytes = 512 * 1024;
constexpr size_t kJitStackBytes = 4 << 20, kLongestPattern = 1 << 16;

std::string pcre2_message(int error) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(error, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

using CompileContext = std::unique_ptr<pcre2_compile_context, decltype(&pcre2_compile_context_free)>;

// What matching needs beside the pattern, once for each thread.
struct MatchSpace {
  pcre2_match_data* data = pcre2_match_data_create(1, nullptr);
  pcre2_match_context* context = pcre2_match_context_create(nullptr);
  pcre2_jit_stack* stack = pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr);
  MatchSpace() {
    pcre2_set_match_limit(context, kMatchSteps);
    pcre2_set_heap_limit(context, kMatchKilobytes);
    pcre2_jit_stack_assign(context, nullptr, stack);
  }
  ~MatchSpace() {
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
    pcre2_jit_stack_free(stack);
  }
};

}  // namespace

Regex::Regex(const std::string& pattern, const std::string& where, RegexDialect dialect) : where_(where) {
  require(pattern.size() <= kLongestPattern,
          "{}: the regular expression has {} bytes, at most {} are allowed", where, pattern.size(),
          kLongestPattern);
  require(is_utf8(pattern), "{}: the regular expression is not UTF-8", where);
  translated_ = translate_pattern(pattern, where, dialect);
  const CompileContext context(pcre2_compile_context_create(nullptr), &pcre2_compile_context_free);
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  const uint32_t lines = dialect == RegexDialect::oniguruma ? PCRE2_MULTILINE : PCRE2_DOLLAR_ENDONLY;
  int error = 0;
  PCRE2_SIZE at = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated_.data()), translated_.size(),
                                   PCRE2_UTF | PCRE2_UCP | lines, &error, &at, context.get());
  require(code != nullptr, "{}: the regular expression is wrong at byte {} of {}: {}", where, at, translated_,
          pcre2_message(error));
  code_ = std::shared_ptr<void>(code, [](void* p) { pcre2_code_free(static_cast<pcre2_code*>(p)); });
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without it matching is slower and otherwise the same
}

void Regex::for_each_match(std::string_view text, const std::function<void(size_t, size_t)>& found) const {
  thread_local const MatchSpace space;
  const auto* code = static_cast<const pcre2_code*>(code_.get());
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  size_t from = 0, last_end = SIZE_MAX;
  while (from <= text.size()) {
    const auto match = [&](uint32_t options) {
      return pcre2_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK | options, space.data,
                         space.context);
    };
    int result = match(0);
    if (result == PCRE2_ERROR_JIT_STACKLIMIT) result = match(PCRE2_NO_JIT);
    if (result == PCRE2_ERROR_NOMATCH) return;
    require(result >= 0, "{}: matching the regular expression failed: {}", where_, pcre2_message(result));
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(space.data);
    const size_t begin = range[0], end = range[1];
    require(begin <= end && begin >= from, "{}: the regular expression matches backwards", where_);
    if (begin == end && begin == last_end) {  // empty, right after a match: look one character further
      if (from >= text.size()) return;
      from += utf8_step(text, from).bytes;
      last_end = SIZE_MAX;
      continue;
    }
    found(begin, end);
    from = last_end = end;
  }
}

std::string Regex::quote(std::string_view literal) {
  std::string pattern;
  for (const char c : literal) {
    if (std::string_view("\\^$.|?*+()[]{}-#").find(c) != std::string_view::npos) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

Regex read_pattern(const JsonPlace& place) {
  place.only({"String", "Regex"});
  const bool literal = place.has("String");
  const JsonPlace given = place.at(literal ? "String" : "Regex");
  require(!given.text().empty(), "{}: is empty", given.where());
  return Regex(literal ? Regex::quote(given.text()) : given.text(), given.where());
}

}  // namespace weft
