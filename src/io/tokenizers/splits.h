// Cutting text at matches.
#pragma once

#include <string_view>
#include <vector>

#include "io/tokenizers/characters.h"
#include "io/tokenizers/pre_tokenizer.h"
#include "io/tokenizers/regex.h"

namespace weft {

struct SplitPart {
  size_t begin, end;
  bool match;
};

// Matches and what lies between them: together the whole text. `invert` exchanges the two.
std::vector<SplitPart> split_parts(std::string_view text, const Regex& pattern, bool invert);

// The same with every character that `matches(code)` as a match.
template <class Matches>
std::vector<SplitPart> split_parts(std::string_view text, Matches matches) {
  std::vector<SplitPart> parts;
  size_t done = 0;
  for_each_character(text, [&](uint32_t code, size_t begin, size_t end) {
    if (!matches(code)) return;
    if (begin != done) parts.push_back({done, begin, false});
    parts.push_back({begin, end, true});
    done = end;
  });
  if (done != text.size()) parts.push_back({done, text.size(), false});
  return parts;
}

// Drops or joins parts as `behavior` says.
std::vector<SplitPart> arrange(std::vector<SplitPart> parts, SplitBehavior behavior);
// Appends the parts of `piece` that are not empty.
void append_parts(const PreTokenizer::Piece& piece, const std::vector<SplitPart>& parts,
                  PreTokenizer::Pieces& pieces);

}  // namespace weft
