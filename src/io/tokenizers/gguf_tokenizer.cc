#include "io/tokenizers/gguf_tokenizer.h"

#include "base/error.h"
#include "io/tokenizers/gguf_patterns.h"
#include "io/tokenizers/json_tokenizer.h"
#include "io/tokenizers/rwkv_vocabulary.h"
#include "io/tokenizers/sentencepiece_tokenizer.h"
#include "io/tokenizers/token_model.h"
#include "io/tokenizers/utf8.h"

namespace weft {

namespace {

using nlohmann::json;
using Type = SentencePieceModel::Type;  // GGUF has the same numbers

constexpr std::string_view kWordBegin = "\xE2\x96\x81";

std::string key_name(const GgufTokenizer& given, const char* name) {
  return fmt::format("{}: tokenizer.ggml.{}", given.source, name);
}

void check_ids(const GgufTokenizer& given) {
  const auto size = static_cast<int64_t>(given.tokens.size());
  const auto check = [&](const std::optional<int64_t>& id, const char* name) {
    require(!id || (*id >= 0 && *id < size), "{}: the id {} is not in the vocabulary of {} tokens",
            key_name(given, name), id.value_or(-1), size);
  };
  check(given.bos, "bos_token_id");
  check(given.eos, "eos_token_id");
  check(given.unknown, "unknown_token_id");
  check(given.separator, "seperator_token_id");
  check(given.padding, "padding_token_id");
  check(given.end_of_turn, "eot_token_id");
}

void check_definition(const GgufTokenizer& given) {
  const size_t size = given.tokens.size();
  require(size > 0 && size < static_cast<size_t>(kMaxId), "{}: has {} tokens, expected 1 to {}",
          key_name(given, "tokens"), size, kMaxId - 1);
  require(given.scores.empty() || given.scores.size() == size, "{}: has {} numbers for {} tokens",
          key_name(given, "scores"), given.scores.size(), size);
  require(given.token_types.empty() || given.token_types.size() == size, "{}: has {} numbers for {} tokens",
          key_name(given, "token_type"), given.token_types.size(), size);
  for (size_t id = 0; id < size; ++id) {
    require(given.token_types.empty() || (given.token_types[id] >= 1 && given.token_types[id] <= 6),
            "{}[{}]: is {}, expected 1 to 6", key_name(given, "token_type"), id, given.token_types[id]);
    require(is_utf8(given.tokens[id]), "{}[{}]: is not UTF-8", key_name(given, "tokens"), id);
  }
  check_ids(given);
}

Type type_of(const GgufTokenizer& given, size_t id) {
  if (!given.token_types.empty()) return static_cast<Type>(given.token_types[id]);
  const auto number = static_cast<int64_t>(id);
  if (given.unknown == number) return Type::unknown;
  if (given.bos == number || given.eos == number || given.padding == number || given.separator == number)
    return Type::control;
  const std::string& token = given.tokens[id];
  return token.size() == 6 && token.starts_with("<0x") && token.ends_with('>') ? Type::byte : Type::normal;
}

std::string token_of(const GgufTokenizer& given, const std::optional<int64_t>& id) {
  return id ? given.tokens[static_cast<size_t>(*id)] : "";
}

// What stands beside a tokenizer.json or a SentencePiece model.
TokenizerConfig config_of(const GgufTokenizer& given, bool add_bos, bool add_eos) {
  json config = {{"add_bos_token", add_bos}, {"add_eos_token", add_eos}};
  if (given.bos) config["bos_token"] = token_of(given, given.bos);
  if (given.eos) config["eos_token"] = token_of(given, given.eos);
  return read_tokenizer_config(config.dump(), given.source);
}

std::shared_ptr<const Tokenizer> sentencepiece(const GgufTokenizer& given, SentencePieceModel::Kind kind) {
  require(given.scores.size() == given.tokens.size(), "{}: is missing, and a model '{}' needs it",
          key_name(given, "scores"), given.model);
  const bool unigram = kind == SentencePieceModel::Kind::unigram;
  SentencePieceModel model;
  model.kind = kind;
  model.add_dummy_prefix = given.add_space_prefix.value_or(true);
  model.remove_extra_whitespaces = given.remove_extra_whitespaces.value_or(false);
  model.charsmap = given.precompiled_charsmap;
  model.unknown_surface = " \xE2\x81\x87 ";
  if (given.bos) model.bos = token_of(given, given.bos);
  if (given.eos) model.eos = token_of(given, given.eos);
  size_t bytes = 0;
  for (size_t id = 0; id < given.tokens.size(); ++id) {
    model.pieces.push_back({given.tokens[id], given.scores[id], type_of(given, id)});
    bytes += model.pieces.back().type == Type::byte;
  }
  model.byte_fallback = bytes == 256;
  const TokenizerConfig config =
      config_of(given, given.add_bos.value_or(!unigram), given.add_eos.value_or(unigram));
  const std::string file = write_sentencepiece_model(model);
  return make_sentencepiece_tokenizer(std::move(model), file, given.source, config);
}

json special_token(const std::string& name) { return {{"SpecialToken", {{"id", name}, {"type_id", 0}}}}; }

// Puts the tokens `before` and `after` around a text.
json template_of(const GgufTokenizer& given, const std::optional<int64_t>& before,
                 const std::optional<int64_t>& after) {
  const json sequence = {{"Sequence", {{"id", "A"}, {"type_id", 0}}}};
  json single = json::array(), tokens = json::object();
  for (const auto& id : {before, after}) {
    if (id)
      tokens[token_of(given, id)] = {
          {"id", token_of(given, id)}, {"ids", {*id}}, {"tokens", {token_of(given, id)}}};
  }
  if (before) single.push_back(special_token(token_of(given, before)));
  single.push_back(sequence);
  if (after) single.push_back(special_token(token_of(given, after)));
  return {{"type", "TemplateProcessing"}, {"single", single}, {"pair", single}, {"special_tokens", tokens}};
}

// Control and user defined tokens, which are found in the text before anything else.
json added_tokens(const GgufTokenizer& given) {
  json list = json::array();
  for (size_t id = 0; id < given.tokens.size(); ++id) {
    const Type type = type_of(given, id);
    if ((type == Type::normal || type == Type::unused || type == Type::byte) || given.tokens[id].empty())
      continue;
    list.push_back({{"id", id},
                    {"content", given.tokens[id]},
                    {"single_word", false},
                    {"lstrip", false},
                    {"rstrip", false},
                    {"normalized", false},
                    {"special", type != Type::user_defined}});
  }
  return list;
}

// Throws for tokens that are there twice, which an object of tokens cannot hold.
void put(json& vocabulary, const GgufTokenizer& given, const std::string& token, size_t id) {
  require(!vocabulary.contains(token), "{}[{}]: '{}' is there twice", key_name(given, "tokens"), id, token);
  vocabulary[token] = id;
}

std::shared_ptr<const Tokenizer> from_json(const GgufTokenizer& given, json root, bool add_bos,
                                           bool add_eos) {
  root["version"] = "1.0";
  root["added_tokens"] = added_tokens(given);
  return make_json_tokenizer(root.dump(), given.source, config_of(given, add_bos, add_eos));
}

std::shared_ptr<const Tokenizer> byte_level_bpe(const GgufTokenizer& given) {
  const GgufPattern pattern = gguf_pattern(given.pre, given.source);
  json vocabulary = json::object(), merges = json::array(), steps = json::array();
  for (size_t id = 0; id < given.tokens.size(); ++id) put(vocabulary, given, given.tokens[id], id);
  for (size_t i = 0; i < given.merges.size(); ++i) {
    require(is_utf8(given.merges[i]), "{}[{}]: is not UTF-8", key_name(given, "merges"), i);
    const size_t space = given.merges[i].find(' ', 1);
    require(space != std::string::npos, "{}[{}]: expected two tokens with a space between them, found '{}'",
            key_name(given, "merges"), i, given.merges[i]);
    merges.push_back({given.merges[i].substr(0, space), given.merges[i].substr(space + 1)});
  }
  for (const std::string& regex : pattern.regexes)
    steps.push_back(
        {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}});
  const json bytes = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  steps.push_back(bytes);
  const bool bos = given.add_bos.value_or(pattern.add_bos), eos = given.add_eos.value_or(false);
  json root = {{"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", steps}}},
               {"decoder", bytes},
               {"model",
                {{"type", "BPE"},
                 {"ignore_merges", pattern.ignore_merges},
                 {"vocab", std::move(vocabulary)},
                 {"merges", std::move(merges)}}}};
  root["post_processor"] = template_of(given, bos ? given.bos : std::nullopt, eos ? given.eos : std::nullopt);
  return from_json(given, std::move(root), bos, eos);
}

// Tokens that begin a word are spelled with the space symbol, all others go on; tokenizer.json has it the other
// way round.
std::shared_ptr<const Tokenizer> word_piece(const GgufTokenizer& given) {
  json vocabulary = json::object();
  for (size_t id = 0; id < given.tokens.size(); ++id) {
    std::string token = given.tokens[id];
    if (token.starts_with(kWordBegin))
      token.erase(0, kWordBegin.size());
    else if (type_of(given, id) == Type::normal)
      token.insert(0, "##");
    put(vocabulary, given, token, id);
  }
  const bool around = given.add_bos.value_or(true);
  const auto last = given.separator ? given.separator : given.eos;
  json model = {{"type", "WordPiece"},
                {"unk_token", given.unknown ? token_of(given, given.unknown) : "[UNK]"},
                {"vocab", std::move(vocabulary)}};
  json root = {{"normalizer", {{"type", "BertNormalizer"}, {"lowercase", true}}},
               {"pre_tokenizer", {{"type", "BertPreTokenizer"}}},
               {"decoder", {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", false}}},
               {"model", std::move(model)}};
  root["post_processor"] = template_of(given, around ? given.bos : std::nullopt,
                                       given.add_eos.value_or(true) ? last : std::nullopt);
  return from_json(given, std::move(root), around, given.add_eos.value_or(true));
}

// GGUF files hold RWKV's bytes as the inside of a Python literal.
std::shared_ptr<const Tokenizer> rwkv(const GgufTokenizer& given) {
  std::vector<std::string> tokens(given.tokens.size());
  for (size_t id = 1; id < tokens.size(); ++id)
    if (type_of(given, id) != Type::control)
      tokens[id] = read_rwkv_literal(given.tokens[id], fmt::format("{}[{}]", key_name(given, "tokens"), id));
  return make_rwkv_tokenizer(tokens, given.source);
}

}  // namespace

std::shared_ptr<const Tokenizer> make_gguf_tokenizer(const GgufTokenizer& given) {
  check_definition(given);
  if (given.model == "llama") return sentencepiece(given, SentencePieceModel::Kind::bpe);
  if (given.model == "t5") return sentencepiece(given, SentencePieceModel::Kind::unigram);
  if (given.model == "gpt2") return byte_level_bpe(given);
  if (given.model == "bert") return word_piece(given);
  if (given.model == "rwkv") return rwkv(given);
  throw Unsupported(
      fmt::format("{}: the model '{}' is not supported; supported are llama, t5, gpt2, bert, rwkv",
                  key_name(given, "model"), given.model));
}

}  // namespace weft
