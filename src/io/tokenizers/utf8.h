// UTF-8 as tokenizers and servers need it: where characters end, and what to do with bytes that are none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace weft {

// What the bytes at `at` are.
struct Utf8Step {
  enum class Kind { character, invalid, incomplete };
  Kind kind;
  size_t bytes;  // of the character, of the maximal invalid part, or what is left of an unfinished character
  uint32_t code = 0;  // of the character
};
// `at` < text.size().
Utf8Step utf8_step(std::string_view text, size_t at);

// `text` with every maximal invalid part replaced by U+FFFD, as the Unicode standard recommends
// (chapter 3.9).
std::string to_utf8(std::string_view text);
bool is_utf8(std::string_view text);
void append_utf8(std::string& text, uint32_t code);

}  // namespace weft
