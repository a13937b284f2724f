#include "io/tokenizers/normalizer.h"

#include "base/error.h"
#include "io/tokenizers/base64.h"
#include "io/tokenizers/byte_letters.h"
#include "io/tokenizers/charsmap.h"
#include "io/tokenizers/normalizer_steps.h"
#include "io/tokenizers/regex.h"

namespace weft {

namespace {

using NormalizerStep = std::function<void(NormalizedText&)>;

NormalizerStep read_replace(const JsonPlace& place) {
  place.only({"type", "pattern", "content"});
  const auto pattern = std::make_shared<Regex>(read_pattern(place.at("pattern")));
  const std::string content = place.at("content").text();
  return [pattern, content](NormalizedText& text) { replace_matches(text, *pattern, content); };
}

NormalizerStep read_strip(const JsonPlace& place) {
  place.only({"type", "strip_left", "strip_right"});
  const bool left = place.at("strip_left").boolean(), right = place.at("strip_right").boolean();
  return [left, right](NormalizedText& text) { strip_spaces(text, left, right); };
}

NormalizerStep read_prepend(const JsonPlace& place) {
  place.only({"type", "prepend"});
  return [prefix = place.at("prepend").text()](NormalizedText& text) {
    if (!text.text.empty()) text.text.insert(0, prefix);
  };
}

NormalizerStep read_bert(const JsonPlace& place) {
  place.only({"type", "clean_text", "handle_chinese_chars", "strip_accents", "lowercase"});
  BertNormalization bert{.clean = place.boolean_or("clean_text", true),
                         .space_ideographs = place.boolean_or("handle_chinese_chars", true),
                         .lower = place.boolean_or("lowercase", true)};
  bert.strip_accents = place.boolean_or("strip_accents", bert.lower);
  return [bert](NormalizedText& text) { normalize_bert(text, bert); };
}

NormalizerStep read_precompiled(const JsonPlace& place) {
  place.only({"type", "precompiled_charsmap"});
  const JsonPlace given = place.at("precompiled_charsmap");
  const auto table = from_base64(given.text());
  require(table.has_value(), "{}: is not base64", given.where());
  const auto map = std::make_shared<CharsMap>(*table, given.where());
  return [map](NormalizedText& text) { apply_charsmap(text, *map); };
}

}  // namespace

Normalizer::Normalizer(const JsonPlace& place) {
  if (!place.is_null()) add(place, 0);
}

void Normalizer::add(const JsonPlace& place, int depth) {
  require(depth < kMaxStepDepth, "{}: nested too deeply", place.where());
  const std::string type = place.at("type").text();
  if (type == "Sequence") {
    place.only({"type", "normalizers"});
    for (const auto& item : place.at("normalizers").items()) add(item, depth + 1);
    return;
  }
  if (type == "Replace")
    steps_.push_back(read_replace(place));
  else if (type == "Prepend")
    steps_.push_back(read_prepend(place));
  else if (type == "Strip")
    steps_.push_back(read_strip(place));
  else if (type == "BertNormalizer")
    steps_.push_back(read_bert(place));
  else if (type == "Precompiled")
    steps_.push_back(read_precompiled(place));
  else
    add_plain(type, place);
  description_ += place.json().dump() + "\n";
}

// Steps without options.
void Normalizer::add_plain(const std::string& type, const JsonPlace& place) {
  if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD")
    steps_.push_back(unicode_form(type));
  else if (type == "Lowercase")
    steps_.push_back([](NormalizedText& text) { text.text = lowercase(text.text); });
  else if (type == "StripAccents")
    steps_.push_back([](NormalizedText& text) { remove_characters(text, is_mark); });
  else if (type == "Nmt")
    steps_.push_back(normalize_nmt);
  else if (type == "ByteLevel")
    steps_.push_back([](NormalizedText& text) { text.text = bytes_to_letters(text.text); });
  else
    throw Unsupported(fmt::format(
        "{}: the normalizer '{}' is not supported; supported are NFC, NFD, NFKC, NFKD, Lowercase, "
        "Strip, StripAccents, Replace, Prepend, BertNormalizer, Nmt, Precompiled, ByteLevel, "
        "Sequence",
        place.where(), type));
  place.only({"type"});
}

NormalizedText Normalizer::run(NormalizedText text) const {
  for (const auto& step : steps_) step(text);
  return text;
}

}  // namespace weft
