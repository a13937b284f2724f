#include "io/chat_template/unicode.h"

#include <unicode/locid.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include <algorithm>

#include "io/chat_template/budget.h"

namespace weft::jinja {
namespace {

icu::UnicodeString wide(std::string_view text) {
  return icu::UnicodeString::fromUTF8(icu::StringPiece(text.data(), static_cast<int32_t>(text.size())));
}

std::string narrow(const icu::UnicodeString& text) {
  std::string out;
  text.toUTF8String(out);
  return out;
}

// The full title case of one character ("ǆ" -> "ǅ", "ß" -> "Ss").
std::string title_of(std::string_view character) {
  size_t at = 0;
  const auto point = static_cast<UChar32>(next_point(character, at));
  const UChar32 simple = u_totitle(point);
  if (simple == point && u_isULowercase(point)) {  // expands, as ß does
    auto big = wide(character);
    big.toUpper(icu::Locale::getRoot());
    if (big.countChar32() > 1) {
      const int32_t first = big.moveIndex32(0, 1);
      auto rest = big.tempSubString(first);
      rest.toLower(icu::Locale::getRoot());
      return narrow(big.tempSubString(0, first)) + narrow(rest);
    }
  }
  std::string out;
  append_point(out, static_cast<uint32_t>(simple));
  return out;
}

}  // namespace

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 128; });
}

uint32_t next_point(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(at);
  const size_t length = first < 0x80   ? 1
                        : first < 0xC2 ? 0
                        : first < 0xE0 ? 2
                        : first < 0xF0 ? 3
                        : first < 0xF5 ? 4
                                       : 0;
  uint32_t point = length < 2 ? first : first & (0xFFu >> (length + 1));
  bool whole = length > 0 && at + length <= text.size();
  for (size_t i = 1; whole && i < length; ++i) {
    whole = (byte(at + i) & 0xC0) == 0x80;
    point = point << 6 | (byte(at + i) & 0x3Fu);
  }
  if (!whole) {
    ++at;
    return 0xDC00u + first;
  }
  at += length;
  return point;
}

void append_point(std::string& text, uint32_t point) {
  const auto tail = [&](int shift) { text += static_cast<char>(0x80 | (point >> shift & 0x3F)); };
  if (point < 0x80) {
    text += static_cast<char>(point);
  } else if (point < 0x800) {
    text += static_cast<char>(0xC0 | point >> 6);
    tail(0);
  } else if (point < 0x10000) {
    text += static_cast<char>(0xE0 | point >> 12);
    tail(6), tail(0);
  } else {
    text += static_cast<char>(0xF0 | point >> 18);
    tail(12), tail(6), tail(0);
  }
}

size_t count_points(std::string_view text) {
  size_t count = 0;
  for (size_t at = 0; at < text.size(); ++count) next_point(text, at);
  return count;
}

std::vector<std::string_view> points_of(std::string_view text) {
  std::vector<std::string_view> out;
  expect_bytes(static_cast<int64_t>(text.size()), sizeof(std::string_view));
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    next_point(text, at);
    out.push_back(text.substr(begin, at - begin));
  }
  return out;
}

bool is_space(uint32_t point) {
  if (point < 128) return (point >= 9 && point <= 13) || (point >= 28 && point <= 32);
  return point == 0x85 || u_isUWhiteSpace(static_cast<UChar32>(point));
}

bool is_line_break(uint32_t point) {
  return (point >= 10 && point <= 13) || (point >= 0x1C && point <= 0x1E) || point == 0x85 ||
         point == 0x2028 || point == 0x2029;
}

bool is_printable(uint32_t point) {
  if (point == ' ') return true;
  switch (u_charType(static_cast<UChar32>(point))) {
    case U_CONTROL_CHAR:
    case U_FORMAT_CHAR:
    case U_SURROGATE:
    case U_PRIVATE_USE_CHAR:
    case U_UNASSIGNED:
    case U_LINE_SEPARATOR:
    case U_PARAGRAPH_SEPARATOR:
    case U_SPACE_SEPARATOR:
      return false;
    default:
      return true;
  }
}

bool is_word(uint32_t point) { return point == '_' || is_class(point, CharClass::alnum); }

bool is_class(uint32_t code, CharClass kind) {
  const auto point = static_cast<UChar32>(code);
  const auto numeric = static_cast<UNumericType>(u_getIntPropertyValue(point, UCHAR_NUMERIC_TYPE));
  switch (kind) {
    case CharClass::alpha:
      return u_isalpha(point);
    case CharClass::alnum:
      return u_isalpha(point) || numeric != U_NT_NONE;
    case CharClass::decimal:
      return numeric == U_NT_DECIMAL;
    case CharClass::digit:
      return numeric == U_NT_DECIMAL || numeric == U_NT_DIGIT;
    case CharClass::numeric:
      return numeric != U_NT_NONE;
    case CharClass::upper:
      return u_isUUppercase(point);
    case CharClass::lower:
      return u_isULowercase(point);
    case CharClass::cased:
      return u_hasBinaryProperty(point, UCHAR_CASED);
  }
  return false;
}

std::string upper(std::string_view text) {
  auto copy = wide(text);
  return narrow(copy.toUpper(icu::Locale::getRoot()));
}

std::string lower(std::string_view text) {
  auto copy = wide(text);
  return narrow(copy.toLower(icu::Locale::getRoot()));
}

std::string casefold(std::string_view text) {
  auto copy = wide(text);
  return narrow(copy.foldCase());
}

std::string capitalize(std::string_view text) {
  if (text.empty()) return "";
  size_t at = 0;
  next_point(text, at);
  return title_of(text.substr(0, at)) + lower(text.substr(at));
}

std::string title(std::string_view text) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    if (!is_class(next_point(text, at), CharClass::cased)) {
      out += text.substr(begin, at - begin);
      continue;
    }
    const size_t rest = at;
    for (size_t ahead = at; at < text.size() && is_class(next_point(text, ahead), CharClass::cased);)
      at = ahead;
    out += title_of(text.substr(begin, rest - begin)) + lower(text.substr(rest, at - rest));
  }
  return out;
}

std::string swapcase(std::string_view text) {
  std::string out;
  for (const auto character : points_of(text)) {
    size_t at = 0;
    const auto point = next_point(character, at);
    out += is_class(point, CharClass::upper)   ? lower(character)
           : is_class(point, CharClass::lower) ? upper(character)
                                               : std::string(character);
  }
  return out;
}

}  // namespace weft::jinja
