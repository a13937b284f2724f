// What methods and filters share: Python's functions on texts.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "io/chat_template/unicode.h"

namespace weft::jinja {

// Without the characters of `chars` at its ends; null: without blanks.
std::string_view strip(std::string_view text, const std::string* chars, bool left = true, bool right = true);
// At a separator, or at runs of blanks (null); at most `most` times, counted from an end (negative: always).
std::vector<std::string_view> split(std::string_view text, const std::string* separator, int64_t most,
                                    bool from_right);
// The first or last place of `wanted`, npos without one; linear in the length of both.
size_t find_text(std::string_view text, std::string_view wanted);
size_t find_last_text(std::string_view text, std::string_view wanted);
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends = false);
// The first `count` of `from` (negative: all) by `to`, within the budget.
std::string replace(std::string_view text, std::string_view from, std::string_view to, int64_t count = -1);
std::string center(const std::string& text, int64_t width, std::string_view fill = " ");
std::string expand_tabs(std::string_view text, int64_t size);
bool is_case(std::string_view text, CharClass kind);
bool is_title(std::string_view text);

// Whether there is a character and all are so.
template <class Test>
bool all_points(std::string_view text, Test test) {
  for (size_t at = 0; at < text.size();)
    if (!test(next_point(text, at))) return false;
  return !text.empty();
}

}  // namespace weft::jinja
