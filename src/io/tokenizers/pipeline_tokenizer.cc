#include "io/tokenizers/pipeline_tokenizer.h"

#include <algorithm>
#include <mutex>
#include <unordered_map>

#include "base/error.h"
#include "io/tokenizers/bpe_model.h"
#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

// The tokens of a definition together with those that a configuration adds or changes.
class TokenList {
 public:
  TokenList(const std::vector<AddedToken>& tokens, const TokenModel& model, const std::string& source)
      : model_(model), source_(source) {
    for (const AddedToken& token : tokens) put(token);
  }

  // Gives a token that is there already the flags of `token`.
  void put(const AddedToken& token) {
    check(token);
    const auto [same, fresh] = by_content_.emplace(token.content, tokens_.size());
    if (fresh) {
      tokens_.push_back(token);
      by_id_.emplace(token.id, token.content);
      return;
    }
    AddedToken& known = tokens_[same->second];
    require(known.id == token.id, "{}: '{}' has the id {} there and {} in the configuration", source_,
            token.content, known.id, token.id);
    known = token;
  }

  // Makes a token of the vocabulary that is named for a purpose a special one.
  void name(AddedToken token) {
    if (token.content.empty() || by_content_.count(token.content) > 0) return;
    token.id = model_.vocabulary().find(token.content);
    if (token.id >= 0) put(token);
  }

  std::vector<AddedToken> take() { return std::move(tokens_); }

 private:
  void check(const AddedToken& token) const {
    const Vocabulary& vocabulary = model_.vocabulary();
    require(token.id >= 0 && token.id < kMaxId, "{}: the id {} of '{}' is not from 0 to {}", source_,
            token.id, token.content, kMaxId - 1);
    const int64_t known = vocabulary.find(token.content);
    require(known < 0 || known == token.id, "{}: '{}' has the id {} here and {} in model.vocab", source_,
            token.content, token.id, known);
    const auto other = by_id_.find(token.id);
    const std::string taken = other != by_id_.end()      ? other->second
                              : vocabulary.has(token.id) ? vocabulary.spelling(token.id)
                                                         : token.content;
    require(taken == token.content, "{}: '{}' has the id {}, which is already '{}'", source_, token.content,
            token.id, taken);
  }

  std::vector<AddedToken> tokens_;
  std::unordered_map<std::string, size_t> by_content_;
  std::unordered_map<int64_t, std::string> by_id_;
  const TokenModel& model_;
  std::string source_;
};

std::vector<AddedToken> all_tokens(const TokenizerParts& parts, const TokenizerConfig& config) {
  TokenList list(parts.added, *parts.model, parts.source + ": added_tokens");
  for (const AddedToken& token : config.added) list.put(token);
  for (const auto& [key, token] : config.named) list.name(token);
  for (const AddedToken& token : config.extra) list.name(token);
  return list.take();
}

}  // namespace

struct PipelineTokenizer::State {
  State(TokenizerParts given, TokenizerConfig settings)
      : parts(std::move(given)),
        config(std::move(settings)),
        added(all_tokens(parts, config), parts.normalizer),
        size(parts.model->vocabulary().size()) {
    for (const AddedToken& token : added.tokens()) {
      size = std::max(size, token.id + 1);
      by_content.emplace(token.content, &token);
      by_id.emplace(token.id, &token);
    }
    for (const auto* ids : {&parts.around.before, &parts.around.after})
      for (const int64_t id : *ids)
        require(has(id), "{}: post_processor: the id {} is not in the vocabulary", parts.source, id);
    choose_end();
  }

  void choose_end() {
    if (const std::string name = config.name_of("eos_token"); !name.empty()) {
      end = find(name);
      require(end.has_value(), "{}: the end-of-text token '{}' is not in the vocabulary", parts.source, name);
      return;
    }
    for (const std::string& usual : kUsualEndNames) {
      const auto found = by_content.find(usual);
      if (found == by_content.end() || !found->second->special) continue;
      end = found->second->id;
      return;
    }
  }

  bool has(int64_t id) const { return by_id.count(id) > 0 || parts.model->vocabulary().has(id); }

  bool special(int64_t id) const {
    const auto found = by_id.find(id);
    return found != by_id.end() && found->second->special;
  }

  std::optional<int64_t> find(std::string_view token) const {
    const auto found = by_content.find(std::string(token));
    if (found != by_content.end()) return found->second->id;
    const int64_t id = parts.model->vocabulary().find(std::string(token));
    return id < 0 ? std::nullopt : std::optional(id);
  }

  // What a decoder sees of a token: for a token that is looked for in normalized text, what it is there.
  std::string shown(int64_t id) const {
    const auto found = by_id.find(id);
    if (found == by_id.end()) return parts.model->vocabulary().spelling(id);
    return found->second->normalized ? parts.normalizer.apply(found->second->content)
                                     : found->second->content;
  }

  // `run` is valid UTF-8.
  void encode_text(std::string_view run, bool parse_special, bool begins, std::vector<int64_t>& ids) const {
    for (TextPart& part : added.split(run, parts.normalizer, parse_special, begins)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
        continue;
      }
      for (const std::string& piece : parts.pre_tokenizer.pieces(std::move(part.text)))
        parts.pre_tokenizer.bytes() ? parts.model->encode_bytes(piece, ids) : parts.model->encode(piece, ids);
    }
  }

  // Bytes that are not UTF-8 are a piece of their own, or U+FFFD where the vocabulary lacks one of them.
  void encode_stray(std::string_view bytes, std::vector<int64_t>& ids) const {
    const bool all = std::all_of(bytes.begin(), bytes.end(), [&](char c) {
      return parts.model->has_byte(static_cast<unsigned char>(c));
    });
    parts.model->encode_bytes(all ? std::string(bytes) : "\xEF\xBF\xBD", ids);
  }

  void encode_bytes(std::string_view text, bool parse_special, std::vector<int64_t>& ids) const {
    size_t begin = 0, at = 0;
    while (at < text.size()) {
      const Utf8Step step = utf8_step(text, at);
      if (step.kind != Utf8Step::Kind::character) {
        encode_text(text.substr(begin, at - begin), parse_special, begin == 0, ids);
        encode_stray(text.substr(at, step.bytes), ids);
        begin = at + step.bytes;
      }
      at += step.bytes;
    }
    encode_text(text.substr(begin), parse_special, begin == 0, ids);
  }

  // The bytes of every token in the middle of a text.
  void fill_bytes() const {
    bytes.resize(static_cast<size_t>(size));
    for (int64_t id = 0; id < size; ++id) {
      if (!has(id)) continue;
      Decoding decoding = parts.decoder.start(true);
      std::string text = decoding.push("x");  // so that the token is not the first one
      text += decoding.push(shown(id)) + decoding.finish();
      bytes[static_cast<size_t>(id)] = text.starts_with('x') ? text.substr(1) : text;
    }
  }

  TokenizerParts parts;
  TokenizerConfig config;
  AddedTokens added;
  int64_t size;
  std::unordered_map<std::string, const AddedToken*> by_content;
  std::unordered_map<int64_t, const AddedToken*> by_id;
  std::optional<int64_t> end;
  mutable std::once_flag bytes_filled;
  mutable std::vector<std::string> bytes;
};

namespace {

class PipelineDecoder final : public TextDecoder {
 public:
  using Show = std::function<std::string(int64_t)>;  // "" for a token that is left out
  PipelineDecoder(Decoding decoding, std::function<bool(int64_t)> skipped, Show shown)
      : decoding_(std::move(decoding)), skipped_(std::move(skipped)), shown_(std::move(shown)) {}
  std::string push(int64_t id) override { return skipped_(id) ? "" : decoding_.push(shown_(id)); }
  std::string finish() override { return decoding_.finish(); }

 private:
  Decoding decoding_;
  std::function<bool(int64_t)> skipped_;
  Show shown_;
};

}  // namespace

PipelineTokenizer::PipelineTokenizer(TokenizerParts parts, TokenizerConfig config) {
  const bool bpe = dynamic_cast<const BpeModel*>(parts.model.get()) != nullptr;
  if (config.clean_up_spaces && (!bpe || config.clean_up_bpe)) parts.decoder.clean_up_spaces();
  state_ = std::make_unique<State>(std::move(parts), std::move(config));
}

PipelineTokenizer::~PipelineTokenizer() = default;

int64_t PipelineTokenizer::vocab_size() const { return state_->size; }

std::vector<int64_t> PipelineTokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  const SpecialIds& around = state_->parts.around;
  std::vector<int64_t> ids;
  if (options.add_special) ids = around.before;
  if (state_->parts.pre_tokenizer.bytes())
    state_->encode_bytes(text, options.parse_special, ids);
  else
    state_->encode_text(is_utf8(text) ? std::string(text) : to_utf8(text), options.parse_special, true, ids);
  if (options.add_special) ids.insert(ids.end(), around.after.begin(), around.after.end());
  return ids;
}

std::string_view PipelineTokenizer::token_bytes(int64_t id) const {
  require(is_token(id), "the id {} is not in the vocabulary of {} ids", id, vocab_size());
  std::call_once(state_->bytes_filled, [this] { state_->fill_bytes(); });
  return state_->bytes[static_cast<size_t>(id)];
}

std::unique_ptr<TextDecoder> PipelineTokenizer::decoder(bool skip_special) const {
  const State* state = state_.get();
  return std::make_unique<PipelineDecoder>(
      state->parts.decoder.start(),
      [=, this](int64_t id) {
        require(state->has(id), "the id {} is not in the vocabulary of {} ids", id, vocab_size());
        return skip_special && state->special(id);
      },
      [=](int64_t id) { return state->shown(id); });
}

bool PipelineTokenizer::is_token(int64_t id) const { return state_->has(id); }
bool PipelineTokenizer::is_special(int64_t id) const { return state_->special(id); }
std::optional<int64_t> PipelineTokenizer::find(std::string_view token) const { return state_->find(token); }
std::optional<int64_t> PipelineTokenizer::end_of_text() const { return state_->end; }

std::string PipelineTokenizer::fingerprint() const {
  const TokenizerParts& parts = state_->parts;
  uint64_t hash = stable_hash(parts.normalizer.description());
  hash = stable_hash(parts.pre_tokenizer.description(), hash);
  hash = parts.model->hash(hash);
  for (const AddedToken& token : state_->added.tokens())
    hash = stable_hash(fmt::format("{} {} {:d}{:d}{:d}{:d}{:d}\n", token.id, token.content, token.single_word,
                                   token.lstrip, token.rstrip, token.normalized, token.special),
                       hash);
  return fmt::format("{}-{:016x}", parts.kind,
                     stable_hash(fmt::format("end {}", state_->end.value_or(-1)), hash));
}

void PipelineTokenizer::save(const std::string& path) const {
  save_with_config(path, state_->parts.definition, state_->config);
}

}  // namespace weft
