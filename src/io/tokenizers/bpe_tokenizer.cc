#include "io/tokenizers/bpe_tokenizer.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "base/files.h"
#include "io/tokenizers/added_tokens.h"
#include "io/tokenizers/bpe_model.h"
#include "io/tokenizers/byte_letters.h"
#include "io/tokenizers/json_place.h"
#include "io/tokenizers/normalizer.h"
#include "io/tokenizers/post_processor.h"
#include "io/tokenizers/pre_tokenizer.h"
#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

// What ends a document under the names that published vocabularies use, best first.
constexpr const char* kEndNames[] = {
    "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<|eos|>", "<|im_end|>"};

void check_decoder(const JsonPlace& place) {
  const std::string type = place.is_null() ? "null" : place.at("type").text();
  if (type == "Sequence") {
    place.only({"type", "decoders"});
    const auto inner = place.at("decoders").items();
    supported(inner.size() == 1 && !inner[0].is_null() && inner[0].at("type").text() == "ByteLevel",
              "{}: only a sequence of one ByteLevel is supported", place.where());
    return;
  }
  supported(type == "ByteLevel", "{}: the decoder '{}' is not supported; supported is ByteLevel",
            place.where(), type);
  place.only({"type", "add_prefix_space", "trim_offsets", "use_regex"});
}

// The definition with absent members as null, after a check of what stands at the top. Truncation and padding
// are left alone: they are settings of a request, not of the vocabulary.
nlohmann::json checked_root(nlohmann::json root, const std::string& source) {
  const JsonPlace place(root, source);
  place.only({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
              "post_processor", "decoder", "model"});
  if (place.has("version"))
    require(place.at("version").text() == "1.0", "{}: found '{}', expected '1.0'",
            place.at("version").where(), place.at("version").text());
  for (const char* key : {"normalizer", "pre_tokenizer", "post_processor", "decoder"})
    if (!root.contains(key)) root[key] = nullptr;
  if (!place.has("added_tokens")) root["added_tokens"] = nlohmann::json::array();
  return root;
}

}  // namespace

struct BpeTokenizer::Parts {
  Parts(const JsonPlace& root, const std::string& definition)
      : text(definition),
        normalizer(root.at("normalizer")),
        pre_tokenizer(root.at("pre_tokenizer")),
        model(root.at("model")),
        added(root.at("added_tokens"), normalizer),
        around(read_post_processor(root.at("post_processor"))),
        vocabulary(model.vocabulary()) {
    check_decoder(root.at("decoder"));
    const auto places = root.at("added_tokens").items();
    for (size_t i = 0; i < places.size(); ++i) place_token(added.tokens()[i], places[i]);
    for (const auto* ids : {&around.before, &around.after})
      for (const int64_t id : *ids)
        require(has(id), "{}: the id {} is not in the vocabulary", root.at("post_processor").where(), id);
  }

  void place_token(const AddedToken& token, const JsonPlace& at) {
    const int64_t known = model.find(token.content);
    require(token.id >= 0 && token.id < kMaxId, "{}: the id {} is not from 0 to {}", at.where(), token.id,
            kMaxId - 1);
    require(known < 0 || known == token.id, "{}: '{}' has the id {} here and {} in model.vocab", at.where(),
            token.content, token.id, known);
    const auto id = static_cast<size_t>(token.id);
    if (id >= vocabulary.size()) vocabulary.resize(id + 1);
    require(!vocabulary[id].present || vocabulary[id].spelling == token.content,
            "{}: '{}' has the id {}, which is already '{}'", at.where(), token.content, id,
            vocabulary[id].spelling);
    // Decoding gives what the text has become when the token is found in it.
    const std::string shown = token.normalized ? normalizer.apply(token.content) : token.content;
    vocabulary[id] = {true, token.content, letters_to_bytes(shown).value_or(shown)};
    by_content.emplace(token.content, token.id);
    if (token.special) special.insert(token.id);
  }

  void choose_end(const std::string& name, const std::string& source) {
    if (!name.empty()) {
      end = find(name);
      require(end.has_value(), "{}: the end-of-text token '{}' is not in the vocabulary", source, name);
      return;
    }
    for (const char* usual : kEndNames) {
      const auto found = by_content.find(usual);
      if (found == by_content.end() || special.count(found->second) == 0) continue;
      end = found->second;
      return;
    }
  }

  bool has(int64_t id) const {
    return id >= 0 && id < static_cast<int64_t>(vocabulary.size()) &&
           vocabulary[static_cast<size_t>(id)].present;
  }

  std::optional<int64_t> find(std::string_view token) const {
    const auto found = by_content.find(std::string(token));
    if (found != by_content.end()) return found->second;
    const int64_t id = model.find(std::string(token));
    return id < 0 ? std::nullopt : std::optional(id);
  }

  // `run` is valid UTF-8.
  void encode_text(std::string_view run, bool parse_special, std::vector<int64_t>& ids) const {
    for (const TextPart& part : added.split(run, normalizer, parse_special)) {
      if (part.id >= 0)
        ids.push_back(part.id);
      else
        for (const std::string& piece : pre_tokenizer.pieces(part.text)) model.encode(piece, ids);
    }
  }

  // Bytes that are not UTF-8 are a piece of their own, or U+FFFD where the vocabulary lacks one of them.
  void encode_stray(std::string_view bytes, std::vector<int64_t>& ids) const {
    const bool all = std::all_of(bytes.begin(), bytes.end(),
                                 [&](char c) { return model.has_byte(static_cast<unsigned char>(c)); });
    model.encode(all ? std::string(bytes) : "\xEF\xBF\xBD", ids);
  }

  std::string text;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  BpeModel model;
  AddedTokens added;
  SpecialIds around;
  std::vector<VocabularyEntry> vocabulary;              // of the model and the added tokens, by id
  std::unordered_map<std::string, int64_t> by_content;  // added tokens
  std::unordered_set<int64_t> special;
  std::optional<int64_t> end;
};

BpeTokenizer::BpeTokenizer(const std::string& json, const std::string& source,
                           const std::string& end_of_text) {
  const nlohmann::json root = checked_root(parse_json(json, source), source);
  auto parts = std::make_unique<Parts>(JsonPlace(root, source), json);
  parts->choose_end(end_of_text, source);
  parts_ = std::move(parts);
}

BpeTokenizer::~BpeTokenizer() = default;

int64_t BpeTokenizer::vocab_size() const { return static_cast<int64_t>(parts_->vocabulary.size()); }

std::vector<int64_t> BpeTokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<int64_t> ids;
  if (options.add_special) ids = parts_->around.before;
  size_t begin = 0, at = 0;
  while (at < text.size()) {
    const Utf8Step step = utf8_step(text, at);
    if (step.kind != Utf8Step::Kind::character) {
      parts_->encode_text(text.substr(begin, at - begin), options.parse_special, ids);
      parts_->encode_stray(text.substr(at, step.bytes), ids);
      begin = at + step.bytes;
    }
    at += step.bytes;
  }
  parts_->encode_text(text.substr(begin), options.parse_special, ids);
  if (options.add_special) ids.insert(ids.end(), parts_->around.after.begin(), parts_->around.after.end());
  return ids;
}

std::string_view BpeTokenizer::token_bytes(int64_t id) const {
  require(parts_->has(id), "the id {} is not in the vocabulary of {} ids", id, vocab_size());
  return parts_->vocabulary[static_cast<size_t>(id)].bytes;
}

bool BpeTokenizer::is_token(int64_t id) const { return parts_->has(id); }
bool BpeTokenizer::is_special(int64_t id) const { return parts_->special.count(id) > 0; }
std::optional<int64_t> BpeTokenizer::find(std::string_view token) const { return parts_->find(token); }
std::optional<int64_t> BpeTokenizer::end_of_text() const { return parts_->end; }

std::string BpeTokenizer::fingerprint() const {
  uint64_t hash = stable_hash(parts_->normalizer.description());
  hash = stable_hash(parts_->pre_tokenizer.description(), hash);
  hash = parts_->model.hash(hash);
  for (const AddedToken& token : parts_->added.tokens())
    hash = stable_hash(fmt::format("{} {} {:d}{:d}{:d}{:d}{:d}\n", token.id, token.content, token.single_word,
                                   token.lstrip, token.rstrip, token.normalized, token.special),
                       hash);
  return fmt::format("bpe-{:016x}", stable_hash(fmt::format("end {}", parts_->end.value_or(-1)), hash));
}

void BpeTokenizer::save(const std::string& path) const { write_atomically(path, parts_->text); }

}  // namespace weft
