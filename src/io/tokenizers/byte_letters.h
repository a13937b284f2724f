// GPT-2's alphabet: every byte as one printable character, so that vocabularies of bytes can be written as
// text.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace weft {

// The characters for all bytes of `bytes`, as UTF-8.
std::string bytes_to_letters(std::string_view bytes);
// The bytes for the characters of `letters`; nothing if one is not in the alphabet.
std::optional<std::string> letters_to_bytes(std::string_view letters);
// Byte values in the order of their characters.
std::string bytes_by_letter();

}  // namespace weft
