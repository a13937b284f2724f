#include "io/chat_template/string_literal.h"

#include <unicode/uchar.h>

#include "io/chat_template/lexer.h"
#include "io/chat_template/unicode.h"

namespace weft::jinja {
namespace {

int digit_of(char c) {
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'a' && c <= 'f' ? c - 'a' + 10
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                : 99;
}

class Unescaper {
 public:
  Unescaper(std::string_view text, int line) : text_(text), line_(line) {}

  std::string run() {
    while (at_ < text_.size())
      if (text_[at_] != '\\' || at_ + 1 >= text_.size())
        out_ += text_[at_++];
      else
        escape();
    return std::move(out_);
  }

 private:
  // Up to `most` digits, all of them when `exact`.
  uint32_t number(int base, size_t most, bool exact) {
    uint32_t value = 0;
    size_t count = 0;
    for (; count < most && at_ < text_.size() && digit_of(text_[at_]) < base; ++count)
      value = value * static_cast<uint32_t>(base) + static_cast<uint32_t>(digit_of(text_[at_++]));
    if (exact && count < most)
      throw SyntaxError(line_, fmt::format("an escape in this string needs {} digits", most));
    return value;
  }

  // A surrogate pair given as two \u escapes is one character.
  void point(uint32_t code) {
    if (code >= 0xD800 && code < 0xDC00 && text_.substr(at_).starts_with("\\u")) {
      const size_t back = at_;
      at_ += 2;
      const auto low = number(16, 4, true);
      if (low >= 0xDC00 && low < 0xE000)
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      else
        at_ = back;
    }
    if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000))
      throw SyntaxError(line_, fmt::format("U+{:04X} in this string is no character", code));
    append_point(out_, code);
  }

  void named() {
    const size_t end = text_.find('}', at_);
    if (at_ >= text_.size() || text_[at_] != '{' || end == std::string_view::npos)
      throw SyntaxError(line_, "expected \\N{NAME} in this string");
    const std::string name(text_.substr(at_ + 1, end - at_ - 1));
    UErrorCode status = U_ZERO_ERROR;
    const UChar32 found = u_charFromName(U_EXTENDED_CHAR_NAME, name.c_str(), &status);
    if (U_FAILURE(status)) throw SyntaxError(line_, fmt::format("there is no character named '{}'", name));
    at_ = end + 1;
    point(static_cast<uint32_t>(found));
  }

  void escape() {
    const char c = text_[at_ + 1];
    constexpr std::string_view letters = "\\'\"abfnrtv", meanings = "\\'\"\a\b\f\n\r\t\v";
    if (c >= '0' && c <= '7') {
      ++at_;
      return point(number(8, 3, false));
    }
    at_ += 2;
    if (const auto known = letters.find(c); known != std::string_view::npos) {
      out_ += meanings[known];
    } else if (c == 'x') {
      point(number(16, 2, true));
    } else if (c == 'u') {
      point(number(16, 4, true));
    } else if (c == 'U') {
      point(number(16, 8, true));
    } else if (c == 'N') {
      named();
    } else if (c != '\n') {
      (out_ += '\\') += c;
    }
  }

  std::string_view text_;
  int line_;
  size_t at_ = 0;
  std::string out_;
};

}  // namespace

std::string unescape(std::string_view literal, int line) { return Unescaper(literal, line).run(); }

}  // namespace weft::jinja
