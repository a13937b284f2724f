#include "io/gguf/tokenizer.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "io/json_place.h"
#include "io/tokenizers/gguf_tokenizer.h"

namespace weft {
namespace {

// tokenizer.ggml.token_type
enum GgufTokenType : int32_t { kNormal = 1, kControl = 3, kUserDefined = 4, kUnused = 5 };

std::optional<int64_t> token_id(const GgufMetadata& metadata, const char* name) {
  const auto key = fmt::format("tokenizer.ggml.{}_token_id", name);
  return metadata.has(key) ? std::optional(metadata.integer(key)) : std::nullopt;
}

std::optional<bool> optional_flag(const GgufMetadata& metadata, const char* key) {
  return metadata.has(key) ? std::optional(metadata.flag(key, false)) : std::nullopt;
}

GgufTokenizer definition_of(const GgufMetadata& metadata) {
  GgufTokenizer definition;
  definition.source = metadata.source();
  definition.model = metadata.text("tokenizer.ggml.model");
  definition.pre = metadata.text("tokenizer.ggml.pre", "");
  definition.tokens = metadata.texts("tokenizer.ggml.tokens");
  for (const auto score : metadata.numbers("tokenizer.ggml.scores"))
    definition.scores.push_back(static_cast<float>(score));
  for (const auto type : metadata.integers("tokenizer.ggml.token_type"))
    definition.token_types.push_back(static_cast<int32_t>(type));
  definition.merges = metadata.texts("tokenizer.ggml.merges");
  for (const auto byte : metadata.integers("tokenizer.ggml.precompiled_charsmap"))
    definition.precompiled_charsmap.push_back(static_cast<char>(byte));
  definition.bos = token_id(metadata, "bos");
  definition.eos = token_id(metadata, "eos");
  definition.unknown = token_id(metadata, "unknown");
  definition.separator = token_id(metadata, "seperator");  // so spelled in the format
  definition.padding = token_id(metadata, "padding");
  definition.end_of_turn = token_id(metadata, "eot");
  definition.add_bos = optional_flag(metadata, "tokenizer.ggml.add_bos_token");
  definition.add_eos = optional_flag(metadata, "tokenizer.ggml.add_eos_token");
  definition.add_space_prefix = optional_flag(metadata, "tokenizer.ggml.add_space_prefix");
  definition.remove_extra_whitespaces = optional_flag(metadata, "tokenizer.ggml.remove_extra_whitespaces");
  return definition;
}

// A text in which the known pre-tokenizers differ.
constexpr const char* kSample =
    "It's I'VE  a  test\n\n\n 3.14159 1234567 x=y+z; `code` \t\ttabs\r\n don't CamelCase HTTPServer "
    "Größe café naïve \u4f60\u597d\uff0c\u4e16\u754c \u3053\u3093\u306b\u3061\u306f "
    "\u041f\u0440\u0438\u0432\u0435\u0442 "
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \U0001f600\U0001f680 /path/to//file ... !!! $100 #tag @user   ";

// The definition of a byte-level tokenizer.json, without the name of its pre-tokenizer.
GgufTokenizer definition_of(const nlohmann::json& json, int64_t vocab, const std::string& source) {
  GgufTokenizer definition;
  definition.source = source;
  definition.model = "gpt2";
  definition.tokens.resize(static_cast<size_t>(vocab));
  definition.token_types.assign(static_cast<size_t>(vocab), kUnused);
  const auto put = [&](const std::string& token, int64_t id, GgufTokenType type) {
    require(id >= 0 && id < vocab, "{}: the id {} of '{}' is outside the model's vocabulary of {}", source,
            id, token, vocab);
    definition.tokens[static_cast<size_t>(id)] = token;
    definition.token_types[static_cast<size_t>(id)] = type;
  };
  for (const auto& [token, id] : json.at("model").at("vocab").items()) put(token, id.get<int64_t>(), kNormal);
  for (const auto& token : json.value("added_tokens", nlohmann::json::array()))
    put(token.at("content"), token.at("id"), token.value("special", false) ? kControl : kUserDefined);
  for (size_t i = 0; i < definition.tokens.size(); ++i)
    if (definition.token_types[i] == kUnused) definition.tokens[i] = fmt::format("[PAD{}]", i);
  for (const auto& merge : json.at("model").at("merges"))
    definition.merges.push_back(merge.is_string()
                                    ? merge.get<std::string>()
                                    : merge.at(0).get<std::string>() + " " + merge.at(1).get<std::string>());
  return definition;
}

std::string matching_pattern(GgufTokenizer definition, const Tokenizer& tokenizer) {
  const auto expected = tokenizer.encode(kSample);
  for (const char* name : {"gpt-2", "llama-bpe", "qwen2", "qwen35", "gpt-4o", "tekken", "deepseek-v3",
                           "smollm", "dbrx", "falcon", "default"}) {
    definition.pre = name;
    if (make_gguf_tokenizer(definition)->encode(kSample) == expected) return name;
  }
  return "";
}

// "eos_token" of a tokenizer_config.json: a text or an object with one.
void set_named_ids(const std::string& folder, const Tokenizer& tokenizer, GgufMetadata& metadata) {
  const auto path = folder + "/tokenizer_config.json";
  if (!std::filesystem::exists(path)) return;
  const auto config = parse_json(read_text(path), path);
  for (const auto& [ours, theirs] : {std::pair{"bos_token", "bos"},
                                     {"eos_token", "eos"},
                                     {"unk_token", "unknown"},
                                     {"pad_token", "padding"}}) {
    if (!config.contains(ours)) continue;
    const auto& token = config[ours];
    const auto text = token.is_object()   ? token.value("content", "")
                      : token.is_string() ? token.get<std::string>()
                                          : "";
    if (const auto id = tokenizer.find(text); id && !text.empty())
      metadata.set_u32(fmt::format("tokenizer.ggml.{}_token_id", theirs), *id);
  }
  if (config.contains("chat_template") && config["chat_template"].is_string())
    metadata.set_text("tokenizer.chat_template", config["chat_template"]);
}

}  // namespace

std::shared_ptr<const Tokenizer> read_gguf_tokenizer(const GgufMetadata& metadata) {
  const auto model = metadata.text("tokenizer.ggml.model", "none");
  return model == "none" || model == "no_vocab" ? nullptr : make_gguf_tokenizer(definition_of(metadata));
}

bool write_gguf_tokenizer(const std::string& folder, const Tokenizer& tokenizer, int64_t vocab,
                          GgufMetadata& metadata) {
  const auto path = folder + "/tokenizer.json";
  if (!std::filesystem::exists(path)) return false;
  const auto json = parse_json(read_text(path), path);
  const auto& model = json.at("model");
  if (model.value("type", "") != "BPE" || model.value("byte_fallback", false)) return false;
  auto definition = definition_of(json, vocab, path);
  definition.pre = matching_pattern(definition, tokenizer);
  if (definition.pre.empty()) return false;
  metadata.set_text("tokenizer.ggml.model", definition.model);
  metadata.set_text("tokenizer.ggml.pre", definition.pre);
  metadata.set_i32s("tokenizer.ggml.token_type",
                    {definition.token_types.begin(), definition.token_types.end()});
  metadata.set_texts("tokenizer.ggml.tokens", std::move(definition.tokens));
  metadata.set_texts("tokenizer.ggml.merges", std::move(definition.merges));
  const bool begins = tokenizer.encode("a", {.add_special = true}).front() != tokenizer.encode("a").front();
  metadata.set_flag("tokenizer.ggml.add_bos_token", begins);
  set_named_ids(folder, tokenizer, metadata);
  const auto chat = folder + "/chat_template.jinja";
  if (std::filesystem::exists(chat)) metadata.set_text("tokenizer.chat_template", read_text(chat));
  return true;
}

}  // namespace weft
