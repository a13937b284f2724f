// Texts of templates as Python sees them: sequences of code points.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weft::jinja {

// The code point at `at`, which moves behind it; a byte that is no UTF-8 counts as one character, as U+DC80 + byte - 128.
uint32_t next_point(std::string_view text, size_t& at);
void append_point(std::string& text, uint32_t point);
size_t count_points(std::string_view text);
std::vector<std::string_view> points_of(std::string_view text);  // one view for each character
bool is_ascii(std::string_view text);

bool is_space(uint32_t point);       // str.isspace, and what strip() and split() take away
bool is_printable(uint32_t point);   // str.isprintable
bool is_word(uint32_t point);        // \w of regular expressions
bool is_line_break(uint32_t point);  // of str.splitlines, \r\n aside
enum class CharClass { alpha, alnum, decimal, digit, numeric, upper, lower, cased };
bool is_class(uint32_t point, CharClass kind);

std::string upper(std::string_view text);
std::string lower(std::string_view text);
std::string capitalize(std::string_view text);  // the first character in title case, the others in lower case
std::string title(std::string_view text);       // str.title: every run of cased characters
std::string swapcase(std::string_view text);
std::string casefold(std::string_view text);

}  // namespace weft::jinja
