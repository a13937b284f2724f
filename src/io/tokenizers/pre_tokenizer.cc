#include "io/tokenizers/pre_tokenizer.h"

#include <unicode/uscript.h>

#include <algorithm>

#include "base/error.h"
#include "io/tokenizers/byte_letters.h"
#include "io/tokenizers/metaspace.h"
#include "io/tokenizers/splits.h"

namespace weft {

const char* const kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

namespace {

using Piece = PreTokenizer::Piece;
using Pieces = PreTokenizer::Pieces;
using Cut = std::function<void(Piece&&, Pieces&)>;

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

Cut cut_at_pattern(const std::shared_ptr<const Regex>& pattern, SplitBehavior behavior, bool invert) {
  return [=](Piece&& piece, Pieces& out) {
    append_parts(piece, arrange(split_parts(piece.text, *pattern, invert), behavior), out);
  };
}

// At the characters of a class.
template <class Matches>
Cut cut_at_characters(Matches matches, SplitBehavior behavior) {
  return [=](Piece&& piece, Pieces& out) {
    append_parts(piece, arrange(split_parts(piece.text, matches), behavior), out);
  };
}

// Runs of word characters and runs of what is neither that nor white space.
void cut_words(Piece&& piece, Pieces& out) {
  std::vector<SplitPart> parts;
  int previous = 0;
  for_each_character(piece.text, [&](uint32_t code, size_t begin, size_t end) {
    const int kind = is_word(code) ? 1 : is_space(code) ? 0 : 2;
    if (kind != 0 && kind == previous)
      parts.back().end = end;
    else if (kind != 0)
      parts.push_back({begin, end, true});
    previous = kind;
  });
  append_parts(piece, parts, out);
}

void cut_bert(Piece&& piece, Pieces& out) {
  Pieces words;
  append_parts(piece, arrange(split_parts(piece.text, is_space), SplitBehavior::removed), words);
  for (Piece& word : words) append_parts(word, split_parts(word.text, is_punctuation), out);
}

// Kana count as Han, and a space belongs to any script (-1).
int merged_script(uint32_t code) {
  if (code == ' ') return -1;
  if (code == 0x30FC) return USCRIPT_HAN;
  const int script = script_of(code);
  return script == USCRIPT_HIRAGANA || script == USCRIPT_KATAKANA ? USCRIPT_HAN : script;
}

// Where the script changes. What stands before the first character with a script is dropped, as Hugging Face's
// library has it.
void cut_scripts(Piece&& piece, Pieces& out) {
  std::vector<SplitPart> parts;
  int previous = -2;
  for_each_character(piece.text, [&](uint32_t code, size_t begin, size_t end) {
    const int script = merged_script(code);
    if (script != -1 && script != previous)
      parts.push_back({begin, end, true});
    else if (!parts.empty())
      parts.back().end = end;
    if (script != -1) previous = script;
  });
  append_parts(piece, parts, out);
}

Cut cut_lengths(int64_t length) {
  return [length](Piece&& piece, Pieces& out) {
    std::vector<SplitPart> parts;
    int64_t count = 0;
    for_each_character(piece.text, [&](uint32_t, size_t begin, size_t end) {
      if (count++ % length == 0)
        parts.push_back({begin, end, true});
      else
        parts.back().end = end;
    });
    append_parts(piece, parts, out);
  };
}

Cut cut_metaspace(const Metaspace& meta) {
  return [meta](Piece&& piece, Pieces& out) {
    std::string text;
    for (const char c : piece.text) c == ' ' ? text += meta.replacement : text += c;
    const bool prepends = meta.scheme == Metaspace::Scheme::always ||
                          (meta.scheme == Metaspace::Scheme::first && piece.begins_original);
    if (prepends && !text.empty() && !text.starts_with(meta.replacement)) text.insert(0, meta.replacement);
    Piece changed{std::move(text), piece.begins_original};
    if (!meta.split) {
      out.push_back(std::move(changed));
      return;
    }
    const uint32_t code = utf8_step(meta.replacement, 0).code;
    const auto parts = split_parts(changed.text, [code](uint32_t c) { return c == code; });
    append_parts(changed, arrange(parts, SplitBehavior::merged_with_next), out);
  };
}

uint32_t read_character(const JsonPlace& place) {
  const std::string text = place.text();
  require(!text.empty() && utf8_step(text, 0).bytes == text.size(), "{}: expected one character, found '{}'",
          place.where(), text);
  return utf8_step(text, 0).code;
}

Cut read_split(const JsonPlace& place) {
  place.only({"type", "pattern", "behavior", "invert"});
  return cut_at_pattern(std::make_shared<Regex>(read_pattern(place.at("pattern"))),
                        read_behavior(place.at("behavior")), place.boolean_or("invert", false));
}

Cut read_fixed_length(const JsonPlace& place) {
  place.only({"type", "length"});
  if (!place.has("length")) return cut_lengths(5);
  const int64_t length = place.at("length").integer();
  require(length > 0, "{}: is {}, expected at least 1", place.at("length").where(), length);
  return cut_lengths(length);
}

}  // namespace

PreTokenizer::PreTokenizer(const JsonPlace& place) {
  if (!place.is_null()) add(place, 0);
  byte_level_ = !steps_.empty() && steps_.back().byte_level;
}

PreTokenizer PreTokenizer::of_bytes(const std::string& pattern, const std::string& where,
                                    RegexDialect dialect) {
  PreTokenizer result;
  result.steps_.push_back(
      {cut_at_pattern(std::make_shared<Regex>(pattern, where, dialect), SplitBehavior::isolated, false),
       true});
  result.byte_level_ = true;
  result.description_ = pattern;
  return result;
}

void PreTokenizer::add(const JsonPlace& place, int depth) {
  require(depth < kMaxStepDepth, "{}: nested too deeply", place.where());
  const std::string type = place.at("type").text();
  if (type == "Sequence") {
    place.only({"type", "pretokenizers"});
    for (const auto& item : place.at("pretokenizers").items()) add(item, depth + 1);
    return;
  }
  description_ += place.json().dump() + "\n";
  if (type == "ByteLevel")
    add_byte_level(place);
  else if (!add_splitting(type, place))
    throw Unsupported(
        fmt::format("{}: the pre-tokenizer '{}' is not supported; supported are ByteLevel, Whitespace, "
                    "WhitespaceSplit, BertPreTokenizer, Metaspace, CharDelimiterSplit, Punctuation, Digits, "
                    "Split, UnicodeScripts, FixedLength, Sequence",
                    place.where(), type));
}

bool PreTokenizer::add_splitting(const std::string& type, const JsonPlace& place) {
  const auto add_plain = [&](Cut cut) {
    place.only({"type"});
    steps_.push_back({std::move(cut)});
    return true;
  };
  const auto add_cut = [&](Cut cut) {
    steps_.push_back({std::move(cut)});
    return true;
  };
  if (type == "Split") return add_cut(read_split(place));
  if (type == "Metaspace") return add_cut(cut_metaspace(read_metaspace(place)));
  if (type == "FixedLength") return add_cut(read_fixed_length(place));
  if (type == "Whitespace") return add_plain(cut_words);
  if (type == "WhitespaceSplit") return add_plain(cut_at_characters(is_space, SplitBehavior::removed));
  if (type == "BertPreTokenizer") return add_plain(cut_bert);
  if (type == "UnicodeScripts") return add_plain(cut_scripts);
  if (type == "Digits") {
    place.only({"type", "individual_digits"});
    const bool single = place.boolean_or("individual_digits", false);
    return add_cut(
        cut_at_characters(is_number, single ? SplitBehavior::isolated : SplitBehavior::contiguous));
  }
  if (type == "Punctuation") {
    place.only({"type", "behavior"});
    const auto behavior =
        place.has("behavior") ? read_behavior(place.at("behavior")) : SplitBehavior::isolated;
    return add_cut(cut_at_characters(is_punctuation, behavior));
  }
  if (type == "CharDelimiterSplit") {
    place.only({"type", "delimiter"});
    const uint32_t delimiter = read_character(place.at("delimiter"));
    return add_cut(
        cut_at_characters([delimiter](uint32_t c) { return c == delimiter; }, SplitBehavior::removed));
  }
  return false;
}

void PreTokenizer::add_byte_level(const JsonPlace& place) {
  place.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  const bool prefix = place.boolean_or("add_prefix_space", true);
  std::shared_ptr<const Regex> pattern;
  if (place.boolean_or("use_regex", true))
    pattern = std::make_shared<Regex>(kByteLevelPattern, place.where());
  steps_.push_back({[=](Piece&& piece, Pieces& out) {
                      if (prefix && piece.text.front() != ' ') piece.text.insert(0, 1, ' ');
                      if (pattern)
                        append_parts(piece, split_parts(piece.text, *pattern, false), out);
                      else
                        out.push_back(std::move(piece));
                    },
                    true});
}

std::vector<std::string> PreTokenizer::pieces(NormalizedText text) const {
  Pieces now, next;
  if (!text.text.empty()) now.push_back({std::move(text.text), text.begins_original});
  for (size_t i = 0; i < steps_.size(); ++i) {
    next.clear();
    for (Piece& piece : now) steps_[i].cut(std::move(piece), next);
    if (steps_[i].byte_level && i + 1 < steps_.size())
      for (Piece& piece : next) piece.text = bytes_to_letters(piece.text);
    std::swap(now, next);
  }
  std::vector<std::string> texts;
  texts.reserve(now.size());
  for (Piece& piece : now) texts.push_back(std::move(piece.text));
  return texts;
}

}  // namespace weft
