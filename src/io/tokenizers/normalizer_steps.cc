#include "io/tokenizers/normalizer_steps.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>
#include <unicode/uniset.h>

#include <memory>

#include "base/error.h"

namespace weft {

namespace {

const icu::Normalizer2* icu_form(const std::string& name) {
  UErrorCode error = U_ZERO_ERROR;
  const icu::Normalizer2* form = name == "NFC"    ? icu::Normalizer2::getNFCInstance(error)
                                 : name == "NFD"  ? icu::Normalizer2::getNFDInstance(error)
                                 : name == "NFKC" ? icu::Normalizer2::getNFKCInstance(error)
                                                  : icu::Normalizer2::getNFKDInstance(error);
  supported(U_SUCCESS(error), "the Unicode tables of ICU for {} cannot be loaded: {}", name,
            u_errorName(error));
  return form;
}

// The characters that the normal forms know.
const icu::UnicodeSet& known_characters() {
  static const icu::UnicodeSet set = [] {
    UErrorCode error = U_ZERO_ERROR;
    icu::UnicodeSet known(icu::UnicodeString("[:Age=") + kNormalFormsAge + ":]", error);
    supported(U_SUCCESS(error), "the Unicode tables of ICU cannot be loaded: {}", u_errorName(error));
    known.freeze();
    return known;
  }();
  return set;
}

bool is_ascii(std::string_view text) {
  for (const char c : text)
    if (static_cast<unsigned char>(c) >= 0x80) return false;
  return true;
}

constexpr uint32_t kDropped = UINT32_MAX;

// Every character as `become(code)`, which may be kDropped.
template <class Become>
void map_characters(NormalizedText& text, Become become) {
  std::string result;
  result.reserve(text.text.size());
  for_each_character(text.text, [&](uint32_t code, size_t begin, size_t) {
    const uint32_t now = become(code);
    if (now != kDropped)
      append_utf8(result, now);
    else if (begin == 0)
      text.begins_original = false;
  });
  text.text = std::move(result);
}

bool keeps_its_control(uint32_t code) { return code == '\t' || code == '\n' || code == '\r'; }

uint32_t cleaned(uint32_t code) {
  if (code == 0 || code == 0xFFFD || (is_other(code) && !keeps_its_control(code))) return kDropped;
  return is_space(code) ? ' ' : code;
}

}  // namespace

std::function<void(NormalizedText&)> unicode_form(const std::string& name) {
  const auto form = std::make_shared<icu::FilteredNormalizer2>(*icu_form(name), known_characters());
  return [form](NormalizedText& text) {
    if (is_ascii(text.text)) return;
    UErrorCode error = U_ZERO_ERROR;
    std::string result;
    icu::StringByteSink<std::string> sink(&result);
    form->normalizeUTF8(0, text.text, sink, nullptr, error);
    invariant(U_SUCCESS(error), "normalizing valid UTF-8 failed: {}", u_errorName(error));
    text.text = std::move(result);
  };
}

void remove_characters(NormalizedText& text, bool (*unwanted)(uint32_t)) {
  if (is_ascii(text.text)) return;  // no class that is removed has ASCII in it
  map_characters(text, [&](uint32_t code) { return unwanted(code) ? kDropped : code; });
}

void strip_spaces(NormalizedText& text, bool left, bool right) {
  size_t begin = 0, end = text.text.size();
  while (left && begin < end) {
    const Utf8Step step = utf8_step(text.text, begin);
    if (!is_space(step.code)) break;
    begin += step.bytes;
  }
  while (right && end > begin) {
    const size_t last = previous_character(text.text, end);
    if (!is_space(utf8_step(text.text, last).code)) break;
    end = last;
  }
  if (begin > 0) text.begins_original = false;
  text.text = text.text.substr(begin, end - begin);
}

void replace_matches(NormalizedText& text, const Regex& pattern, const std::string& content) {
  std::string result;
  size_t done = 0;
  pattern.for_each_match(text.text, [&](size_t begin, size_t end) {
    result.append(text.text, done, begin - done).append(content);
    const bool whole_front = begin == 0 && end > 0;
    if (whole_front && (content.empty() || utf8_step(text.text, 0).bytes < end)) text.begins_original = false;
    done = end;
  });
  if (done == 0 && result.empty()) return;
  text.text = result.append(text.text, done);
}

void normalize_nmt(NormalizedText& text) {
  map_characters(text, [](uint32_t code) -> uint32_t {
    const bool dropped = (code >= 1 && code <= 8) || code == 0xB || (code >= 0xE && code <= 0x1F) ||
                         code == 0x7F || code == 0x8F || code == 0x9F;
    if (dropped) return kDropped;
    const bool space = code == 9 || code == 0xA || code == 0xC || code == 0xD || code == 0x1680 ||
                       (code >= 0x200B && code <= 0x200F) || code == 0x2028 || code == 0x2029 ||
                       code == 0x2581 || code == 0xFEFF || code == 0xFFFD;
    return space ? ' ' : code;
  });
}

void apply_charsmap(NormalizedText& text, const CharsMap& map) {
  static const Regex clusters("\\X", "grapheme clusters");
  std::string result;
  result.reserve(text.text.size());
  const auto replace = [&](std::string_view part) {
    const auto match = map.shortest(part);
    if (match) result += match->text;
    if (match && match->text.empty() && result.empty()) text.begins_original = false;
    return match.has_value();
  };
  clusters.for_each_match(text.text, [&](size_t begin, size_t end) {
    const std::string_view cluster = std::string_view(text.text).substr(begin, end - begin);
    if (cluster.size() < 6 && replace(cluster)) return;
    for_each_character(cluster, [&](uint32_t, size_t from, size_t to) {
      const std::string_view one = cluster.substr(from, to - from);
      if (!replace(one)) result += one;
    });
  });
  text.text = std::move(result);
}

void normalize_bert(NormalizedText& text, const BertNormalization& options) {
  if (options.clean) map_characters(text, cleaned);
  if (options.space_ideographs) {
    std::string spaced;
    for_each_character(text.text, [&](uint32_t code, size_t begin, size_t end) {
      const bool ideograph = is_cjk_ideograph(code);
      if (ideograph) spaced += ' ';
      spaced.append(text.text, begin, end - begin);
      if (ideograph) spaced += ' ';
    });
    text.text = std::move(spaced);
  }
  if (options.strip_accents) {
    static const auto decompose = unicode_form("NFD");
    decompose(text);
    remove_characters(text, is_nonspacing_mark);
  }
  if (options.lower) text.text = lowercase(text.text);
}

}  // namespace weft
