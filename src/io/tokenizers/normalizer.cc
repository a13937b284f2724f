#include "io/tokenizers/normalizer.h"

#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>

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

std::string replace_all(const std::string& text, const std::string& from, const std::string& to) {
  std::string result;
  size_t at = 0;
  for (size_t hit; (hit = text.find(from, at)) != std::string::npos; at = hit + from.size())
    result.append(text, at, hit - at).append(to);
  return result.append(text, at);
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
  } else if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    place.only({"type"});
    add_unicode_form(type);
  } else if (type == "Prepend") {
    place.only({"type", "prepend"});
    const std::string prefix = place.at("prepend").text();
    steps_.push_back([prefix](std::string text) { return text.empty() ? text : prefix + text; });
    description_ += "prepend " + prefix + "\n";
  } else if (type == "Replace") {
    add_replace(place);
  } else {
    throw Unsupported(
        fmt::format("{}: the normalizer '{}' is not supported; supported are NFC, NFD, NFKC, NFKD, "
                    "Prepend, Replace, Sequence",
                    place.where(), type));
  }
}

void Normalizer::add_unicode_form(const std::string& name) {
  const icu::Normalizer2* form = icu_form(name);
  steps_.push_back([form](std::string text) {
    UErrorCode error = U_ZERO_ERROR;
    if (form->isNormalizedUTF8(text, error) && U_SUCCESS(error)) return text;
    error = U_ZERO_ERROR;
    std::string result;
    icu::StringByteSink<std::string> sink(&result);
    form->normalizeUTF8(0, text, sink, nullptr, error);
    invariant(U_SUCCESS(error), "normalizing valid UTF-8 failed: {}", u_errorName(error));
    return result;
  });
  description_ += name + "\n";
}

void Normalizer::add_replace(const JsonPlace& place) {
  place.only({"type", "pattern", "content"});
  const JsonPlace pattern = place.at("pattern");
  pattern.only({"String", "Regex"});
  supported(pattern.has("String"), "{}: only a plain string can be replaced", pattern.where());
  const std::string from = pattern.at("String").text(), to = place.at("content").text();
  require(!from.empty(), "{}: is empty", pattern.at("String").where());
  steps_.push_back([from, to](std::string text) { return replace_all(text, from, to); });
  description_ += fmt::format("replace {} {} {}\n", from.size(), from, to);
}

std::string Normalizer::apply(std::string text) const {
  for (const auto& step : steps_) text = step(std::move(text));
  return text;
}

}  // namespace weft
