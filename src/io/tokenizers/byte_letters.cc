#include "io/tokenizers/byte_letters.h"

#include <algorithm>
#include <array>
#include <numeric>

#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

struct Alphabet {
  std::array<uint32_t, 256> letter{};
  std::array<int, 324> byte{};  // by letter, -1 for others

  Alphabet() {
    byte.fill(-1);
    uint32_t next = 256;  // bytes without a printable character of their own take the ones from here on
    for (uint32_t value = 0; value < 256; ++value) {
      const bool printable = (value >= '!' && value <= '~') || (value >= 0xA1 && value != 0xAD);
      letter[value] = printable ? value : next++;
      byte[letter[value]] = static_cast<int>(value);
    }
  }
};

const Alphabet& alphabet() {
  static const Alphabet instance;
  return instance;
}

}  // namespace

std::string bytes_to_letters(std::string_view bytes) {
  std::string letters;
  letters.reserve(bytes.size() + bytes.size() / 4);
  for (const char byte : bytes) append_utf8(letters, alphabet().letter[static_cast<unsigned char>(byte)]);
  return letters;
}

std::optional<std::string> letters_to_bytes(std::string_view letters) {
  std::string bytes;
  bytes.reserve(letters.size());
  for (size_t at = 0; at < letters.size();) {
    const Utf8Step step = utf8_step(letters, at);
    const bool known = step.kind == Utf8Step::Kind::character && step.code < alphabet().byte.size() &&
                       alphabet().byte[step.code] >= 0;
    if (!known) return std::nullopt;
    bytes += static_cast<char>(alphabet().byte[step.code]);
    at += step.bytes;
  }
  return bytes;
}

std::string bytes_by_letter() {
  std::string bytes(256, '\0');
  std::iota(bytes.begin(), bytes.end(), '\0');
  std::sort(bytes.begin(), bytes.end(), [](char a, char b) {
    return alphabet().letter[static_cast<unsigned char>(a)] <
           alphabet().letter[static_cast<unsigned char>(b)];
  });
  return bytes;
}

}  // namespace weft
