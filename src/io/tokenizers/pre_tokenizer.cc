#include "io/tokenizers/pre_tokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "io/tokenizers/byte_letters.h"

namespace weft {

const char* const kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

struct Part {
  size_t begin, end;
  bool match;
};

// Matches and what lies between them: together the whole text.
std::vector<Part> parts_of(std::string_view text, const Regex& pattern, bool invert) {
  std::vector<Part> parts;
  size_t done = 0;
  pattern.for_each_match(text, [&](size_t begin, size_t end) {
    if (begin != done) parts.push_back({done, begin, invert});
    parts.push_back({begin, end, !invert});
    done = end;
  });
  if (done != text.size()) parts.push_back({done, text.size(), invert});
  return parts;
}

// Joins a part to the one before it when `joins(part, whether the previous part is a match)`.
template <class Joins>
std::vector<Part> joined(const std::vector<Part>& parts, Joins joins) {
  std::vector<Part> result;
  bool previous = false;
  for (const Part& part : parts) {
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

std::vector<Part> arrange(std::vector<Part> parts, SplitBehavior behavior) {
  const auto match_after_other = [](bool match, bool previous) { return match && !previous; };
  switch (behavior) {
    case SplitBehavior::isolated:
      return parts;
    case SplitBehavior::removed:
      std::erase_if(parts, [](const Part& part) { return part.match; });
      return parts;
    case SplitBehavior::contiguous:
      return joined(parts, [](bool match, bool previous) { return match == previous; });
    case SplitBehavior::merged_with_previous:
      return joined(parts, match_after_other);
    case SplitBehavior::merged_with_next: {
      std::reverse(parts.begin(), parts.end());
      std::vector<Part> result = joined(parts, match_after_other);
      std::reverse(result.begin(), result.end());
      return result;
    }
  }
  return parts;
}

SplitBehavior read_behavior(const JsonPlace& place) {
  const std::string name = place.text();
  if (name == "Removed") return SplitBehavior::removed;
  if (name == "Isolated") return SplitBehavior::isolated;
  if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
  if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
  if (name == "Contiguous") return SplitBehavior::contiguous;
  throw InputError(
      fmt::format("{}: found '{}', expected Removed, Isolated, MergedWithPrevious, MergedWithNext or "
                  "Contiguous",
                  place.where(), name));
}

}  // namespace

std::vector<std::string> split_by(std::string_view text, const Regex& pattern, SplitBehavior behavior,
                                  bool invert) {
  std::vector<std::string> pieces;
  for (const Part& part : arrange(parts_of(text, pattern, invert), behavior))
    if (part.end > part.begin) pieces.emplace_back(text.substr(part.begin, part.end - part.begin));
  return pieces;
}

PreTokenizer::PreTokenizer(const JsonPlace& place) {
  if (!place.is_null()) add(place, 0);
  const auto levels =
      std::count_if(steps_.begin(), steps_.end(), [](const Step& step) { return step.byte_level; });
  supported(levels == 1, "{}: weft reads byte-level BPE, which has one ByteLevel here, found {}",
            place.where(), levels);
}

void PreTokenizer::add(const JsonPlace& place, int depth) {
  require(depth < kMaxStepDepth, "{}: nested too deeply", place.where());
  const std::string type = place.at("type").text();
  if (type == "Sequence") {
    place.only({"type", "pretokenizers"});
    for (const auto& item : place.at("pretokenizers").items()) add(item, depth + 1);
  } else if (type == "Split") {
    add_split(place);
  } else if (type == "ByteLevel") {
    add_byte_level(place);
  } else if (type == "Digits") {
    place.only({"type", "individual_digits"});
    const bool single = place.boolean_or("individual_digits", false);
    add_pattern("\\p{N}", single ? SplitBehavior::isolated : SplitBehavior::contiguous, false, place.where());
  } else if (type == "Punctuation") {
    place.only({"type", "behavior"});
    const auto behavior =
        place.has("behavior") ? read_behavior(place.at("behavior")) : SplitBehavior::isolated;
    add_pattern(R"([\p{P}!-/:-@\[-`\{-~])", behavior, false, place.where());
  } else {
    throw Unsupported(
        fmt::format("{}: the pre-tokenizer '{}' is not supported; supported are ByteLevel, Split, Digits, "
                    "Punctuation, Sequence",
                    place.where(), type));
  }
}

void PreTokenizer::add_split(const JsonPlace& place) {
  place.only({"type", "pattern", "behavior", "invert"});
  const JsonPlace pattern = place.at("pattern");
  pattern.only({"Regex", "String"});
  const bool literal = pattern.has("String");
  const JsonPlace given = pattern.at(literal ? "String" : "Regex");
  require(!given.text().empty(), "{}: is empty", given.where());
  add_pattern(literal ? Regex::quote(given.text()) : given.text(), read_behavior(place.at("behavior")),
              place.boolean_or("invert", false), given.where());
}

void PreTokenizer::add_pattern(const std::string& pattern, SplitBehavior behavior, bool invert,
                               const std::string& where) {
  steps_.push_back(
      {.pattern = std::make_shared<Regex>(pattern, where), .behavior = behavior, .invert = invert});
  description_ += fmt::format("split {} {} {}\n", pattern, static_cast<int>(behavior), invert);
}

void PreTokenizer::add_byte_level(const JsonPlace& place) {
  place.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  Step step{.byte_level = true, .prefix_space = place.boolean_or("add_prefix_space", true)};
  const bool cuts = place.boolean_or("use_regex", true);
  if (cuts) step.pattern = std::make_shared<Regex>(kByteLevelPattern, place.where());
  description_ += fmt::format("bytes {} {}\n", step.prefix_space, cuts);
  steps_.push_back(std::move(step));
}

std::vector<std::string> PreTokenizer::pieces(std::string_view text) const {
  std::vector<std::string> now, next;
  if (!text.empty()) now.emplace_back(text);
  bool letters = false;
  for (size_t i = 0; i < steps_.size(); ++i) {
    const Step& step = steps_[i];
    next.clear();
    for (std::string& piece : now) {
      if (step.prefix_space && piece.front() != ' ') piece.insert(0, 1, ' ');
      if (!step.pattern) {
        next.push_back(std::move(piece));
        continue;
      }
      for (auto& part : split_by(piece, *step.pattern, step.behavior, step.invert))
        next.push_back(std::move(part));
    }
    if (step.byte_level && i + 1 < steps_.size()) {
      letters = true;
      for (std::string& piece : next) piece = bytes_to_letters(piece);
    }
    std::swap(now, next);
  }
  if (letters)
    for (std::string& piece : now) piece = *letters_to_bytes(piece);
  return now;
}

}  // namespace weft
