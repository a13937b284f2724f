#include "io/tokenizers/splits.h"

#include <algorithm>

namespace weft {

namespace {

// Joins a part to the one before it when `joins(whether it is a match, whether the previous part is one)`.
template <class Joins>
std::vector<SplitPart> joined(const std::vector<SplitPart>& parts, Joins joins) {
  std::vector<SplitPart> result;
  bool previous = false;
  for (const SplitPart& part : parts) {
    if (joins(part.match, previous) && !result.empty()) {
      result.back().begin = std::min(result.back().begin, part.begin);
      result.back().end = std::max(result.back().end, part.end);
    } else {
      result.push_back(part);
    }
    previous = part.match;
  }
  return result;
}

}  // namespace

std::vector<SplitPart> split_parts(std::string_view text, const Regex& pattern, bool invert) {
  std::vector<SplitPart> parts;
  size_t done = 0;
  pattern.for_each_match(text, [&](size_t begin, size_t end) {
    if (begin != done) parts.push_back({done, begin, invert});
    parts.push_back({begin, end, !invert});
    done = end;
  });
  if (done != text.size()) parts.push_back({done, text.size(), invert});
  return parts;
}

std::vector<SplitPart> arrange(std::vector<SplitPart> parts, SplitBehavior behavior) {
  const auto match_after_other = [](bool match, bool previous) { return match && !previous; };
  switch (behavior) {
    case SplitBehavior::isolated:
      return parts;
    case SplitBehavior::removed:
      std::erase_if(parts, [](const SplitPart& part) { return part.match; });
      return parts;
    case SplitBehavior::contiguous:
      return joined(parts, [](bool match, bool previous) { return match == previous; });
    case SplitBehavior::merged_with_previous:
      return joined(parts, match_after_other);
    case SplitBehavior::merged_with_next: {
      std::reverse(parts.begin(), parts.end());
      std::vector<SplitPart> result = joined(parts, match_after_other);
      std::reverse(result.begin(), result.end());
      return result;
    }
  }
  return parts;
}

void append_parts(const PreTokenizer::Piece& piece, const std::vector<SplitPart>& parts,
                  PreTokenizer::Pieces& pieces) {
  for (const SplitPart& part : parts)
    if (part.end > part.begin)
      pieces.push_back(
          {piece.text.substr(part.begin, part.end - part.begin), piece.begins_original && part.begin == 0});
}

std::vector<std::string> split_by(std::string_view text, const Regex& pattern, SplitBehavior behavior,
                                  bool invert) {
  PreTokenizer::Pieces pieces;
  append_parts({std::string(text), true}, arrange(split_parts(text, pattern, invert), behavior), pieces);
  std::vector<std::string> texts;
  for (auto& piece : pieces) texts.push_back(std::move(piece.text));
  return texts;
}

}  // namespace weft
