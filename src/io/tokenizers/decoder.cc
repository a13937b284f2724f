#include "io/tokenizers/decoder.h"

#include "base/error.h"
#include "io/tokenizers/decode_stages.h"
#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

using Stage = std::unique_ptr<DecodeStage>;
using Make = std::function<Stage(bool)>;

// A stage that is made from the same values every time.
template <class S, class... Values>
Make always(Values... values) {
  return [=](bool) -> Stage { return std::make_unique<S>(values...); };
}

Make word_piece_stage(const JsonPlace& place) {
  place.only({"type", "prefix", "cleanup"});
  return always<WordPieceStage>(place.at("prefix").text(), place.at("cleanup").boolean());
}

Make ctc_stage(const JsonPlace& place) {
  place.only({"type", "pad_token", "word_delimiter_token", "cleanup"});
  return always<CtcStage>(place.at("pad_token").text(), place.at("word_delimiter_token").text(),
                          place.at("cleanup").boolean());
}

Make strip_stage(const JsonPlace& place) {
  place.only({"type", "content", "start", "stop"});
  const std::string content = place.at("content").text();
  require(!content.empty() && utf8_step(content, 0).bytes == content.size(),
          "{}: expected one character, found '{}'", place.at("content").where(), content);
  const int64_t start = place.at("start").integer(), stop = place.at("stop").integer();
  require(start >= 0, "{}: {} is negative", place.at("start").where(), start);
  require(stop >= 0, "{}: {} is negative", place.at("stop").where(), stop);
  return always<StripStage>(content, static_cast<size_t>(start), static_cast<size_t>(stop));
}

Make replace_stage(const JsonPlace& place) {
  place.only({"type", "pattern", "content"});
  const std::string content = place.at("content").text();
  const JsonPlace pattern = place.at("pattern");
  auto regex = std::make_shared<const Regex>(read_pattern(pattern));
  if (pattern.has("String")) return always<ReplaceStage>(pattern.at("String").text(), content);
  return always<RegexReplaceStage>(regex, content);
}

Make suffix_stage(const JsonPlace& place) {
  place.only({"type", "suffix"});
  const std::string suffix = place.at("suffix").text();
  require(!suffix.empty(), "{}: is empty", place.at("suffix").where());
  return always<BpeSuffixStage>(suffix);
}

}  // namespace

// The end of a chain, which gathers the text.
struct Decoding::End final : DecodeStage {
  void add(std::string_view text, bool) override { gathered += text; }
  void finish() override {}
  std::string gathered;
};

Decoding::Decoding(std::vector<std::unique_ptr<DecodeStage>> stages) : stages_(std::move(stages)) {
  stages_.push_back(std::make_unique<End>());
  for (size_t i = 0; i + 1 < stages_.size(); ++i) stages_[i]->then(stages_[i + 1].get());
}

std::string Decoding::push(std::string_view token) {
  stages_.front()->add(token, true);
  return std::exchange(static_cast<End&>(*stages_.back()).gathered, {});
}

std::string Decoding::finish() {
  stages_.front()->finish();
  return std::exchange(static_cast<End&>(*stages_.back()).gathered, {});
}

TokenDecoder::TokenDecoder(const JsonPlace& place) {
  if (place.is_null())
    stages_.push_back(always<SpacedStage>());
  else
    add(place, 0);
}

TokenDecoder TokenDecoder::of_bytes() {
  TokenDecoder decoder;
  decoder.stages_.push_back(always<ByteLevelStage>());
  return decoder;
}

void TokenDecoder::add(const JsonPlace& place, int depth) {
  require(depth < kMaxStepDepth, "{}: nested too deeply", place.where());
  const std::string type = place.at("type").text();
  if (type == "Sequence") {
    place.only({"type", "decoders"});
    for (const auto& item : place.at("decoders").items()) add(item, depth + 1);
  } else if (type == "ByteLevel") {
    place.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    stages_.push_back(always<ByteLevelStage>());
  } else if (type == "ByteFallback") {
    place.only({"type"});
    stages_.push_back([](bool raw) -> Stage { return std::make_unique<ByteFallbackStage>(raw); });
  } else if (type == "Fuse") {
    place.only({"type"});
    stages_.push_back(always<FuseStage>());
  } else if (type == "WordPiece") {
    stages_.push_back(word_piece_stage(place));
  } else if (type == "Metaspace") {
    stages_.push_back(always<MetaspaceStage>(read_metaspace(place)));
  } else if (type == "BPEDecoder") {
    stages_.push_back(suffix_stage(place));
  } else if (type == "Strip") {
    stages_.push_back(strip_stage(place));
  } else if (type == "CTC") {
    stages_.push_back(ctc_stage(place));
  } else if (type == "Replace") {
    stages_.push_back(replace_stage(place));
  } else {
    throw Unsupported(
        fmt::format("{}: the decoder '{}' is not supported; supported are ByteLevel, WordPiece, Metaspace, "
                    "BPEDecoder, ByteFallback, Fuse, Strip, CTC, Replace, Sequence",
                    place.where(), type));
  }
}

void TokenDecoder::clean_up_spaces() {
  stages_.push_back(always<FuseStage>());
  static constexpr const char* kReplacements[][2] = {
      {" .", "."},     {" ?", "?"},   {" !", "!"},   {" ,", ","},     {" ' ", "'"},
      {" n't", "n't"}, {" 'm", "'m"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kReplacements)
    stages_.push_back(always<ReplaceStage>(std::string(from), std::string(to)));
}

Decoding TokenDecoder::start(bool raw_bytes) const {
  std::vector<std::unique_ptr<DecodeStage>> stages;
  for (const Make& make : stages_) stages.push_back(make(raw_bytes));
  return Decoding(std::move(stages));
}

}  // namespace weft
