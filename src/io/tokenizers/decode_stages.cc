#include "io/tokenizers/decode_stages.h"

#include <algorithm>

#include "io/tokenizers/byte_letters.h"
#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

std::string replaced(const std::string& text, std::string_view from, std::string_view to) {
  StreamedReplace replace{std::string(from), std::string(to)};
  std::string result = replace.push(text);
  return result + replace.finish();
}

// English punctuation and contractions without the space before them.
std::string cleaned_up(std::string text) {
  static constexpr std::string_view kReplacements[][2] = {
      {" .", "."},   {" ?", "?"},           {" !", "!"},   {" ,", ","},     {" ' ", "'"},   {" n't", "n't"},
      {" 'm", "'m"}, {" do not", " don't"}, {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& [from, to] : kReplacements) text = replaced(text, from, to);
  return text;
}

// The longest end of `text` that begins `pattern` and is not all of it.
size_t unfinished_match(std::string_view text, std::string_view pattern) {
  for (size_t length = std::min(text.size(), pattern.size() - 1); length > 0; --length)
    if (pattern.starts_with(text.substr(text.size() - length))) return length;
  return 0;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

}  // namespace

std::string StreamedReplace::push(std::string_view text) {
  kept_ += text;
  std::string result;
  size_t done = 0;
  for (size_t hit; (hit = kept_.find(from_, done)) != std::string::npos; done = hit + from_.size())
    result.append(kept_, done, hit - done).append(to_);
  const std::string_view rest = std::string_view(kept_).substr(done);
  const size_t keep = unfinished_match(rest, from_);
  result += rest.substr(0, rest.size() - keep);
  kept_.erase(0, kept_.size() - keep);
  return result;
}

std::string StreamedReplace::finish() { return std::exchange(kept_, {}); }

void WholePieces::add(std::string_view text, bool ends) {
  kept_ += text;
  if (ends) piece(std::exchange(kept_, {}));
}

void WholePieces::finish() {
  if (!kept_.empty()) piece(std::exchange(kept_, {}));
  DecodeStage::finish();
}

void ByteLevelStage::piece(std::string text) { pass(letters_to_bytes(text).value_or(text), false); }

void ByteLevelStage::finish() {
  pass("", true);
  WholePieces::finish();
}

void FuseStage::finish() {
  pass("", true);
  DecodeStage::finish();
}

void SpacedStage::add(std::string_view text, bool ends) {
  if (!first_ && !inside_) pass(" ", false);
  first_ = false;
  inside_ = !ends;
  pass(text, ends);
}

void WordPieceStage::piece(std::string text) {
  if (!first_) {
    if (text.starts_with(prefix_))
      text.erase(0, prefix_.size());
    else
      text.insert(0, 1, ' ');
  }
  first_ = false;
  pass(cleanup_ ? cleaned_up(std::move(text)) : text, true);
}

MetaspaceStage::MetaspaceStage(const Metaspace& meta)
    : first_(meta.replacement, meta.scheme == Metaspace::Scheme::never ? " " : ""),
      others_(meta.replacement, " ") {}

void MetaspaceStage::add(std::string_view text, bool ends) {
  StreamedReplace& replace = in_first_ ? first_ : others_;
  std::string result = replace.push(text);
  if (ends) {
    result += replace.finish();
    in_first_ = false;
  }
  pass(result, ends);
}

void MetaspaceStage::finish() {
  if (const std::string rest = first_.finish() + others_.finish(); !rest.empty()) pass(rest, true);
  DecodeStage::finish();
}

void BpeSuffixStage::piece(std::string text) {
  if (any_) pass(replaced(last_, suffix_, " "), true);
  any_ = true;
  last_ = std::move(text);
}

void BpeSuffixStage::finish() {
  if (any_) pass(replaced(last_, suffix_, ""), true);
  any_ = false;
  WholePieces::finish();
}

void ByteFallbackStage::piece(std::string text) {
  const bool shaped = text.size() == 6 && text.starts_with("<0x") && text.back() == '>';
  const int high = shaped ? hex_digit(text[3]) : -1, low = shaped ? hex_digit(text[4]) : -1;
  if (high >= 0 && low >= 0) {
    bytes_ += static_cast<char>(high * 16 + low);
    if (raw_) flush();
    return;
  }
  flush();
  pass(text, true);
}

void ByteFallbackStage::flush() {
  const std::string bytes = std::exchange(bytes_, {});
  if (bytes.empty()) return;
  if (raw_ || is_utf8(bytes)) return pass(bytes, true);
  for (size_t i = 0; i < bytes.size(); ++i) pass(kReplacementCharacter, true);
}

void ByteFallbackStage::finish() {
  flush();
  WholePieces::finish();
}

// Whether it is known what goes from the begin of the piece.
bool StripStage::strip_begin(bool ends) {
  while (left_ > 0) {
    if (kept_.starts_with(content_)) {
      kept_.erase(0, content_.size());
      --left_;
    } else if (!ends && content_.starts_with(kept_)) {
      return false;
    } else {
      left_ = 0;
    }
  }
  return true;
}

// How many bytes of kept_ cannot be stripped from the end any more.
size_t StripStage::certain() const {
  if (stop_ == 0) return kept_.size();
  std::string_view rest = kept_;
  rest.remove_suffix(unfinished_match(rest, content_));
  for (size_t i = 0; i < stop_ && rest.ends_with(content_); ++i) rest.remove_suffix(content_.size());
  return rest.size();
}

void StripStage::add(std::string_view text, bool ends) {
  kept_ += text;
  if (!strip_begin(ends)) return;
  if (ends) {
    for (size_t i = 0; i < stop_ && kept_.ends_with(content_); ++i)
      kept_.erase(kept_.size() - content_.size());
    left_ = start_;
    return pass(std::exchange(kept_, {}), true);
  }
  const size_t ready = certain();
  pass(std::string_view(kept_).substr(0, ready), false);
  kept_.erase(0, ready);
}

void StripStage::finish() {
  if (!kept_.empty()) add("", true);
  DecodeStage::finish();
}

void CtcStage::piece(std::string text) {
  if (any_ && text == previous_) return;
  any_ = true;
  previous_ = text;
  if (!pad_.empty()) text = replaced(text, pad_, "");
  if (cleanup_) {
    text = cleaned_up(std::move(text));
    if (!delimiter_.empty()) text = replaced(text, delimiter_, " ");
  }
  if (!text.empty()) pass(text, true);
}

void ReplaceStage::add(std::string_view text, bool ends) {
  std::string result = replace_.push(text);
  if (ends) result += replace_.finish();
  pass(result, ends);
}

void ReplaceStage::finish() {
  if (const std::string rest = replace_.finish(); !rest.empty()) pass(rest, true);
  DecodeStage::finish();
}

void RegexReplaceStage::piece(std::string text) {
  text = to_utf8(text);  // an earlier ByteLevel may give anything
  std::string result;
  size_t done = 0;
  pattern_->for_each_match(text, [&](size_t begin, size_t end) {
    result.append(text, done, begin - done).append(content_);
    done = end;
  });
  pass(result.append(text, done), true);
}

}  // namespace weft
