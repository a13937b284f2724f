// What the steps of a normalizer do.
#pragma once

#include <functional>
#include <string>

#include "io/tokenizers/characters.h"
#include "io/tokenizers/charsmap.h"
#include "io/tokenizers/normalizer.h"
#include "io/tokenizers/regex.h"

namespace weft {

// NFC, NFD, NFKC or NFKD. Characters younger than kNormalFormsAge are left alone.
std::function<void(NormalizedText&)> unicode_form(const std::string& name);
void remove_characters(NormalizedText& text, bool (*unwanted)(uint32_t));
void strip_spaces(NormalizedText& text, bool left, bool right);
void replace_matches(NormalizedText& text, const Regex& pattern, const std::string& content);
// Drops control characters and makes one space of each other kind of space, as Google's NMT does.
void normalize_nmt(NormalizedText& text);
// The table applied to grapheme clusters of up to 5 bytes, else character by character; the shortest entry
// counts and replaces the whole cluster or character.
void apply_charsmap(NormalizedText& text, const CharsMap& map);

struct BertNormalization {
  bool clean, space_ideographs, strip_accents = false, lower;
};
void normalize_bert(NormalizedText& text, const BertNormalization& options);

}  // namespace weft
