// Classes of characters that tokenizers ask for. The tables are those of the installed ICU, cut back to the
// version of Unicode that Hugging Face's library has for a class: text must become the ids that a model was
// trained with, also where Unicode has grown since.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace weft {

bool is_space(uint32_t code);        // White_Space
bool is_word(uint32_t code);         // UTS 18, annex C: letters, marks, decimal digits, connectors, joiners
bool is_number(uint32_t code);       // general category N
bool is_punctuation(uint32_t code);  // P in Unicode 8, and the printable ASCII that is no letter or digit
bool is_mark(uint32_t code);         // M in Unicode 9
bool is_nonspacing_mark(uint32_t code);  // Mn in Unicode 8
bool is_other(uint32_t code);            // Cc, Cf, Co, Cs (not Cn) in Unicode 8
bool is_cjk_ideograph(uint32_t code);    // the blocks that BERT puts spaces around
// ICU's number of the script of a character in Unicode 9; -1 when it had none.
int script_of(uint32_t code);
// The Unicode version that the normal forms NFC to NFKD are those of.
constexpr const char* kNormalFormsAge = "9.0";

// The begin of the character that ends at `end` > 0 of valid UTF-8.
size_t previous_character(std::string_view text, size_t end);
// Valid UTF-8 with every character in lower case, without regard to its neighbours.
std::string lowercase(std::string_view text);

// Calls f(code, begin, end) for every character of valid UTF-8.
template <class F>
void for_each_character(std::string_view text, F f);

}  // namespace weft

#include "io/tokenizers/utf8.h"

namespace weft {

template <class F>
void for_each_character(std::string_view text, F f) {
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    f(step.code, at, at + step.bytes);
    at += step.bytes;
  }
}

}  // namespace weft
