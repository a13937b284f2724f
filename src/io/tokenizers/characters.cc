#include "io/tokenizers/characters.h"

#include <unicode/uchar.h>
#include <unicode/uscript.h>

namespace weft {

namespace {

bool in_category(uint32_t code, uint32_t mask) {
  return (U_GET_GC_MASK(static_cast<UChar32>(code)) & mask) != 0;
}

// Whether Unicode had the character in this version.
bool known_in(uint32_t code, int version) {
  UVersionInfo age;
  u_charAge(static_cast<UChar32>(code), age);
  return age[0] != 0 && (age[0] < version || (age[0] == version && age[1] == 0));
}

}  // namespace

bool is_space(uint32_t code) {
  if (code < 0x80) return code == ' ' || (code >= 9 && code <= 13);
  return u_isUWhiteSpace(static_cast<UChar32>(code));
}

bool is_word(uint32_t code) {
  const auto c = static_cast<UChar32>(code);
  return u_hasBinaryProperty(c, UCHAR_ALPHABETIC) ||
         in_category(code, U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK) ||
         u_hasBinaryProperty(c, UCHAR_JOIN_CONTROL);
}

bool is_number(uint32_t code) { return in_category(code, U_GC_N_MASK); }

bool is_punctuation(uint32_t code) {
  if (code < 0x80)
    return (code > ' ' && code < '0') || (code > '9' && code < 'A') || (code > 'Z' && code < 'a') ||
           (code > 'z' && code < 0x7F);
  if (code == 0x166D || code == 0x111C9) return true;  // changed since
  return in_category(code, U_GC_P_MASK) && known_in(code, 8);
}

bool is_mark(uint32_t code) {
  if (code == 0x1CF2 || code == 0x1CF3) return true;  // changed since
  return in_category(code, U_GC_M_MASK) && code != 0x111C9 && known_in(code, 9);
}

bool is_nonspacing_mark(uint32_t code) {
  if (code == 0x1734 || code == 0xA9BD) return true;  // changed since, as those of the next line
  if (code == 0x1885 || code == 0x1886 || code == 0x111C9) return false;
  return in_category(code, U_GC_MN_MASK) && known_in(code, 8);
}

bool is_other(uint32_t code) {
  return in_category(code, U_GC_CC_MASK | U_GC_CF_MASK | U_GC_CO_MASK | U_GC_CS_MASK) && known_in(code, 8);
}

bool is_cjk_ideograph(uint32_t code) {
  constexpr uint32_t blocks[][2] = {{0x4E00, 0x9FFF},   {0x3400, 0x4DBF},   {0x20000, 0x2A6DF},
                                    {0x2A700, 0x2B73F}, {0x2B740, 0x2B81F}, {0x2B920, 0x2CEAF},
                                    {0xF900, 0xFAFF},   {0x2F800, 0x2FA1F}};
  for (const auto& [low, high] : blocks)
    if (code >= low && code <= high) return true;
  return false;
}

int script_of(uint32_t code) {
  if (!known_in(code, 9)) return -1;
  if (code == 0x589 || code == 0x61C) return USCRIPT_COMMON;  // changed since, as those of the next line
  if (code == 0x953 || code == 0x954) return USCRIPT_DEVANAGARI;
  UErrorCode error = U_ZERO_ERROR;
  const UScriptCode script = uscript_getScript(static_cast<UChar32>(code), &error);
  return script == USCRIPT_UNKNOWN ? -1 : script;
}

size_t previous_character(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

std::string lowercase(std::string_view text) {
  std::string lower;
  lower.reserve(text.size());
  for_each_character(text, [&](uint32_t code, size_t, size_t) {
    append_utf8(lower, static_cast<uint32_t>(u_tolower(static_cast<UChar32>(code))));
    if (code == 0x130) append_utf8(lower, 0x307);  // the only one that becomes two characters
  });
  return lower;
}

}  // namespace weft
