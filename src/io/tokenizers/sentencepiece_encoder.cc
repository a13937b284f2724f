#include "io/tokenizers/sentencepiece_encoder.h"

#include <algorithm>
#include <cfloat>

#include "base/error.h"
#include "io/tokenizers/characters.h"
#include "io/tokenizers/unigram_model.h"
#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

using Type = SentencePieceModel::Type;

constexpr float kPenalty = 10;
constexpr int32_t kFrozen = 1 << 28;  // added to the id of a user defined piece, which takes part in no merge
constexpr std::string_view kBadByte = "\xEF\xBF\xBD";

}  // namespace

char piece_byte(std::string_view piece) {
  const std::string digits(piece.substr(std::min<size_t>(3, piece.size()), 2));
  return static_cast<char>(std::strtol(digits.c_str(), nullptr, 16));
}

SentencePieceEncoder::SentencePieceEncoder(const SentencePieceModel& model, const std::string& source)
    : model_(model) {
  if (!model.charsmap.empty())
    charsmap_.emplace(model.charsmap, source + ": normalizer_spec.precompiled_charsmap");
  lowest_ = FLT_MAX;
  highest_ = -FLT_MAX;
  byte_ids_.assign(256, -1);
  for (size_t id = 0; id < model.pieces.size(); ++id) {
    const auto& piece = model.pieces[id];
    if (piece.type == Type::unknown) unknown_ = static_cast<int64_t>(id);
    if (piece.type == Type::byte)
      byte_ids_[static_cast<unsigned char>(piece_byte(piece.text))] = static_cast<int64_t>(id);
    if (piece.type == Type::unknown || piece.type == Type::control || piece.type == Type::byte) continue;
    pieces_.insert(piece.text, id);
    ids_.emplace(piece.text, static_cast<int32_t>(id));
    if (piece.type == Type::user_defined) user_defined_.insert(piece.text, id);
    has_unused_ = has_unused_ || piece.type == Type::unused;
    if (piece.type != Type::normal) continue;
    lowest_ = std::min(lowest_, piece.score);
    highest_ = std::max(highest_, piece.score);
  }
  if (model.kind == SentencePieceModel::Kind::bpe) add_merges();
}

// Any two neighbours whose texts together are a piece merge, the highest score first. Symbols are pieces and
// single characters; those of the latter that are no pieces get numbers behind the pieces.
void SentencePieceEncoder::add_merges() {
  std::vector<float> scores;
  for (const auto& [text, id] : ids_) {
    scores.push_back(model_.pieces[static_cast<size_t>(id)].score);
    for_each_character(text, [&](uint32_t, size_t begin, size_t end) {
      const std::string_view letter = text.substr(begin, end - begin);
      if (ids_.count(letter) == 0)
        letters_.emplace(letter, static_cast<int32_t>(model_.pieces.size() + letters_.size()));
    });
  }
  letter_texts_.resize(letters_.size());
  for (const auto& [letter, number] : letters_)
    letter_texts_[static_cast<size_t>(number) - model_.pieces.size()] = letter;
  std::sort(scores.begin(), scores.end(), std::greater<>());
  scores.erase(std::unique(scores.begin(), scores.end()), scores.end());
  std::vector<MergeTable::Merge> merges;
  for (const auto& [text, id] : ids_) {
    const float score = model_.pieces[static_cast<size_t>(id)].score;
    const auto rank =
        std::lower_bound(scores.begin(), scores.end(), score, std::greater<>()) - scores.begin();
    for (size_t cut = 1; cut < text.size(); ++cut) {
      if ((static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) continue;
      const int32_t left = symbol(text.substr(0, cut), false), right = symbol(text.substr(cut), false);
      if (left >= 0 && right >= 0) merges.push_back({pair_key(left, right), static_cast<int32_t>(rank), id});
    }
  }
  merges_ = MergeTable(merges);
}

int32_t SentencePieceEncoder::symbol(std::string_view text, bool frozen) const {
  const auto piece = ids_.find(text);
  if (piece != ids_.end()) return piece->second + (frozen ? kFrozen : 0);
  const auto letter = letters_.find(text);
  return letter == letters_.end() ? -1 : letter->second;
}

std::pair<std::string_view, size_t> SentencePieceEncoder::normalize_prefix(std::string_view text) const {
  if (const auto [id, length] = user_defined_.longest(text, 0); length > 0)
    return {text.substr(0, length), length};
  if (charsmap_)
    if (const auto match = charsmap_->longest(text)) return {match->text, match->length};
  const Utf8Step step = utf8_step(text, 0);
  if (step.kind != Utf8Step::Kind::character) return {kBadByte, 1};
  return {text.substr(0, step.bytes), step.bytes};
}

std::string SentencePieceEncoder::normalize(std::string_view text) const {
  const std::string_view space = model_.escape_whitespaces ? kSpaceSymbol : " ";
  const bool removes = model_.remove_extra_whitespaces;
  if (text.empty()) return "";
  while (removes && !text.empty()) {
    const auto [now, length] = normalize_prefix(text);
    if (now != " ") break;
    text.remove_prefix(length);
  }
  if (text.empty()) return "";
  std::string result;
  if (model_.add_dummy_prefix && !model_.whitespace_as_suffix) result += space;
  bool after_space = removes;
  while (!text.empty()) {
    auto [now, length] = normalize_prefix(text);
    while (after_space && now.starts_with(' ')) now.remove_prefix(1);
    for (const char c : now) c == ' ' ? result += space : result += c;
    if (!now.empty()) after_space = removes && now.ends_with(' ');
    text.remove_prefix(length);
  }
  while (removes && result.ends_with(space)) result.erase(result.size() - space.size());
  if (model_.add_dummy_prefix && model_.whitespace_as_suffix) result += space;
  return result;
}

int64_t SentencePieceEncoder::find(std::string_view text) const {
  const auto found = ids_.find(text);
  return found == ids_.end() ? -1 : found->second;
}

// Of the user defined piece or the character that `text` begins with.
size_t SentencePieceEncoder::symbol_length(std::string_view text, bool& user_defined) const {
  const auto [id, length] = user_defined_.longest(text, 0);
  user_defined = length > 0;
  return user_defined ? length : utf8_step(text, 0).bytes;
}

std::vector<SentencePieceEncoder::Span> SentencePieceEncoder::unigram(std::string_view text) const {
  const auto find_pieces = [&](size_t at, auto offer) {
    pieces_.for_each_prefix(text, at, [&](size_t id, size_t length) {
      const auto& piece = model_.pieces[id];
      if (piece.type == Type::unused) return;
      const double bonus = static_cast<float>(length) * highest_ - 0.1;
      offer(static_cast<int64_t>(id), length, piece.type == Type::user_defined ? bonus : piece.score);
    });
  };
  std::vector<Span> spans;
  for (const auto& step : BestPath<float>().run(text, lowest_ - kPenalty, find_pieces))
    spans.push_back({text.substr(step.begin, step.end - step.begin), step.id});
  return spans;
}

std::vector<SentencePieceEncoder::Span> SentencePieceEncoder::bpe(std::string_view text) const {
  std::vector<int32_t> symbols;
  std::vector<std::string_view> unknown;  // characters that are in no piece, numbered behind all others
  const auto first_unknown = static_cast<int32_t>(model_.pieces.size() + letters_.size());
  for (size_t at = 0; at < text.size();) {
    bool frozen = false;
    const std::string_view now = text.substr(at, symbol_length(text.substr(at), frozen));
    symbols.push_back(symbol(now, frozen));
    if (symbols.back() < 0) {
      symbols.back() = first_unknown;
      unknown.push_back(now);
    }
    at += now.size();
  }
  if (has_unused_) {
    MergeTable::Origins origins;
    std::vector<int32_t> whole = std::move(symbols);
    symbols.clear();
    merges_.apply(whole, origins);
    for (const int32_t one : whole) resegment(one, origins, symbols, 0);
  } else {
    merges_.apply(symbols);
  }
  std::vector<Span> spans;
  size_t next_unknown = 0;
  const auto pieces = static_cast<int32_t>(model_.pieces.size());
  for (int32_t one : symbols) {
    if (one >= kFrozen) one -= kFrozen;
    if (one < pieces)
      spans.push_back({model_.pieces[static_cast<size_t>(one)].text, one});
    else if (one < first_unknown)
      spans.push_back({letter_texts_[static_cast<size_t>(one - pieces)], -1});
    else
      spans.push_back({unknown[next_unknown++], -1});
  }
  return spans;
}

// An unused piece falls apart into the pair that it was last seen as.
void SentencePieceEncoder::resegment(int32_t symbol, const MergeTable::Origins& origins,
                                     std::vector<int32_t>& out, int depth) const {
  const bool unused = symbol < static_cast<int32_t>(model_.pieces.size()) &&
                      model_.pieces[static_cast<size_t>(symbol)].type == Type::unused;
  const auto origin = unused ? origins.find(symbol) : origins.end();
  if (origin == origins.end() || depth > 100) return out.push_back(symbol);
  resegment(origin->second.first, origins, out, depth + 1);
  resegment(origin->second.second, origins, out, depth + 1);
}

std::vector<SentencePieceEncoder::Span> SentencePieceEncoder::words(std::string_view text) const {
  std::vector<Span> spans;
  size_t begin = 0;
  const auto cut = [&](size_t end) {
    if (end > begin)
      spans.push_back({text.substr(begin, end - begin), find(text.substr(begin, end - begin))});
    begin = end;
  };
  for (size_t at = 0; at < text.size(); at += utf8_step(text, at).bytes)
    if (text.substr(at).starts_with(kSpaceSymbol)) cut(at + (model_.whitespace_as_suffix ? 3 : 0));
  cut(text.size());
  return spans;
}

std::vector<SentencePieceEncoder::Span> SentencePieceEncoder::characters(std::string_view text) const {
  std::vector<Span> spans;
  for (size_t at = 0; at < text.size();) {
    bool frozen = false;
    const std::string_view now = text.substr(at, symbol_length(text.substr(at), frozen));
    spans.push_back({now, find(now)});
    at += now.size();
  }
  return spans;
}

void SentencePieceEncoder::encode(std::string_view text, std::vector<int64_t>& ids) const {
  using Kind = SentencePieceModel::Kind;
  const std::string normal = normalize(text);
  const std::vector<Span> spans = model_.kind == Kind::unigram ? unigram(normal)
                                  : model_.kind == Kind::bpe   ? bpe(normal)
                                  : model_.kind == Kind::word  ? words(normal)
                                                               : characters(normal);
  bool after_unknown = false;
  for (const Span& span : spans) {
    const bool unknown = span.id < 0;
    if (!unknown)
      ids.push_back(span.id);
    else if (model_.byte_fallback)
      for (const char c : span.text) ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
    else if (!after_unknown)  // several in a row are one
      ids.push_back(unknown_);
    after_unknown = unknown;
  }
}

}  // namespace weft
