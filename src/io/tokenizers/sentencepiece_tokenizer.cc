#include "io/tokenizers/sentencepiece_tokenizer.h"

#include <unordered_map>

#include "base/error.h"
#include "io/tokenizers/added_tokens.h"
#include "io/tokenizers/sentencepiece_encoder.h"
#include "io/tokenizers/token_model.h"
#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

using Type = SentencePieceModel::Type;

constexpr std::string_view kBadPiece = "\xEF\xBF\xBD";

std::string with_spaces(std::string_view piece) {
  std::string text;
  for (size_t at = 0; at < piece.size();) {
    const bool space = piece.substr(at).starts_with(kSpaceSymbol);
    text += space ? ' ' : piece[at];
    at += space ? kSpaceSymbol.size() : 1;
  }
  return text;
}

// The library's rules: the first word loses its space symbol (every one, if extra spaces are removed), an
// unknown piece is unk_surface, bytes in a row are put together and each one that does not fit is U+FFFD.
class SentencePieceDecoder final : public TextDecoder {
 public:
  explicit SentencePieceDecoder(const SentencePieceModel& model) : model_(model) {}

  std::string push(int64_t id) override {
    require(id >= 0 && id < static_cast<int64_t>(model_.pieces.size()),
            "the id {} is not in the vocabulary of {} ids", id, model_.pieces.size());
    const auto& piece = model_.pieces[static_cast<size_t>(id)];
    if (piece.type == Type::byte) {
      bytes_ += piece_byte(piece.text);
      return take_bytes(false);
    }
    std::string text = take_bytes(true);
    if (dropped_space_ || any_) at_begin_ = false;
    text += surface(piece);
    any_ = any_ || !text.empty();
    return text;
  }

  std::string finish() override { return take_bytes(true); }

 private:
  std::string surface(const SentencePieceModel::Piece& piece) {
    dropped_space_ = false;
    if (piece.type == Type::control) return "";
    if (piece.type == Type::unknown) return model_.unknown_surface;
    std::string_view text = piece.text;
    if (at_begin_ && (model_.add_dummy_prefix || model_.remove_extra_whitespaces) &&
        text.starts_with(kSpaceSymbol)) {
      text.remove_prefix(kSpaceSymbol.size());
      dropped_space_ = !model_.remove_extra_whitespaces;
    }
    return with_spaces(text);
  }

  std::string take_bytes(bool all) {
    std::string text;
    size_t at = 0;
    while (at < bytes_.size()) {
      const Utf8Step step = utf8_step(bytes_, at);
      if (step.kind == Utf8Step::Kind::incomplete && !all) break;
      const bool good = step.kind == Utf8Step::Kind::character;
      text += good ? std::string_view(bytes_).substr(at, step.bytes) : kBadPiece;
      at += good ? step.bytes : 1;
    }
    bytes_.erase(0, at);
    any_ = any_ || !text.empty();
    return text;
  }

  const SentencePieceModel& model_;
  std::string bytes_;
  bool at_begin_ = true, dropped_space_ = false, any_ = false;
};

class SentencePieceTokenizer final : public Tokenizer {
 public:
  SentencePieceTokenizer(SentencePieceModel model, std::string definition, const std::string& source,
                         const TokenizerConfig& config)
      : model_(std::move(model)),
        definition_(std::move(definition)),
        config_(config),
        encoder_(model_, source) {
    std::vector<AddedToken> control;
    for (size_t id = 0; id < model_.pieces.size(); ++id) {
      const auto& piece = model_.pieces[id];
      ids_.emplace(piece.text, static_cast<int64_t>(id));
      bytes_.push_back(bytes_of(piece));
      if (piece.type == Type::control)
        control.push_back({.id = static_cast<int64_t>(id), .content = piece.text, .special = true});
    }
    control_ = AddedTokens(std::move(control), Normalizer());
    bos_ = choose("bos_token", model_.bos, source);
    eos_ = choose("eos_token", model_.eos, source);
  }

  int64_t vocab_size() const override { return static_cast<int64_t>(model_.pieces.size()); }

  std::vector<int64_t> encode(std::string_view text, const EncodeOptions& options) const override {
    std::vector<int64_t> ids;
    if (options.add_special && config_.add_bos.value_or(false) && bos_) ids.push_back(*bos_);
    for (const TextPart& part : control_.split(text, Normalizer(), options.parse_special, true))
      part.id >= 0 ? ids.push_back(part.id) : encoder_.encode(part.text.text, ids);
    if (options.add_special && config_.add_eos.value_or(false) && eos_) ids.push_back(*eos_);
    return ids;
  }

  std::string_view token_bytes(int64_t id) const override {
    require(is_token(id), "the id {} is not in the vocabulary of {} ids", id, vocab_size());
    return bytes_[static_cast<size_t>(id)];
  }

  bool is_token(int64_t id) const override { return id >= 0 && id < vocab_size(); }

  bool is_special(int64_t id) const override {
    if (!is_token(id)) return false;
    const Type type = model_.pieces[static_cast<size_t>(id)].type;
    return type == Type::control || type == Type::unknown;
  }

  std::optional<int64_t> find(std::string_view token) const override {
    const auto found = ids_.find(std::string(token));
    return found == ids_.end() ? std::nullopt : std::optional(found->second);
  }

  std::optional<int64_t> end_of_text() const override { return eos_; }

  std::string fingerprint() const override {
    return fmt::format("sentencepiece-{:016x}",
                       stable_hash(fmt::format("end {}", eos_.value_or(-1)), stable_hash(definition_)));
  }

  void save(const std::string& path) const override { save_with_config(path, definition_, config_); }

  std::unique_ptr<TextDecoder> decoder(bool skip_special) const override;

 private:
  std::string bytes_of(const SentencePieceModel::Piece& piece) const {
    if (piece.type == Type::control) return "";
    if (piece.type == Type::byte) return std::string(1, piece_byte(piece.text));
    return piece.type == Type::unknown ? model_.unknown_surface : with_spaces(piece.text);
  }

  // The id of the configuration's name, which must be there, or of the model's own.
  std::optional<int64_t> choose(const char* key, const std::string& own, const std::string& source) const {
    const std::string given = config_.name_of(key);
    const auto id = find(given.empty() ? own : given);
    require(given.empty() || id.has_value(), "{}: the {} '{}' is not in the vocabulary", source, key, given);
    return id;
  }

  SentencePieceModel model_;
  std::string definition_;
  TokenizerConfig config_;
  SentencePieceEncoder encoder_;
  AddedTokens control_;
  std::unordered_map<std::string, int64_t> ids_;
  std::vector<std::string> bytes_;
  std::optional<int64_t> bos_, eos_;
};

// Leaves unknown pieces out; control pieces are nothing anyway.
class SkippingDecoder final : public TextDecoder {
 public:
  SkippingDecoder(const Tokenizer& tokenizer, std::unique_ptr<TextDecoder> inner)
      : tokenizer_(tokenizer), inner_(std::move(inner)) {}
  std::string push(int64_t id) override { return tokenizer_.is_special(id) ? "" : inner_->push(id); }
  std::string finish() override { return inner_->finish(); }

 private:
  const Tokenizer& tokenizer_;
  std::unique_ptr<TextDecoder> inner_;
};

std::unique_ptr<TextDecoder> SentencePieceTokenizer::decoder(bool skip_special) const {
  auto inner = std::make_unique<SentencePieceDecoder>(model_);
  if (!skip_special) return inner;
  return std::make_unique<SkippingDecoder>(*this, std::move(inner));
}

}  // namespace

std::shared_ptr<const Tokenizer> make_sentencepiece_tokenizer(SentencePieceModel model,
                                                              std::string definition,
                                                              const std::string& source,
                                                              const TokenizerConfig& config) {
  check_sentencepiece_model(model, source);
  return std::make_shared<SentencePieceTokenizer>(std::move(model), std::move(definition), source, config);
}

}  // namespace weft
