#include "io/tokenizers/tokenizer_config.h"

#include <charconv>
#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "io/tokenizers/token_model.h"

namespace fs = std::filesystem;

namespace weft {

const std::vector<std::string> kUsualEndNames = {
    "<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<|eos|>", "<|im_end|>"};

namespace {

constexpr const char* kFile = "tokenizer_config.json";

// Text, or an object as in added_tokens.
AddedToken read_named(const JsonPlace& place) {
  AddedToken token{.content = ""};
  if (place.json().is_object())
    token = read_added_token(place);
  else
    token.content = place.text();
  token.special = true;
  return token;
}

int64_t read_id(const std::string& text, const JsonPlace& place) {
  int64_t id = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), id);
  require(error == std::errc() && end == text.data() + text.size() && id >= 0 && id < kMaxId,
          "{}: '{}' is no id from 0 to {}", place.where(), text, kMaxId - 1);
  return id;
}

void read_lists(const JsonPlace& root, TokenizerConfig& config) {
  if (root.has("added_tokens_decoder"))
    for (const auto& [id, token] : root.at("added_tokens_decoder").members()) {
      config.added.push_back(read_added_token(token));
      config.added.back().id = read_id(id, token);
    }
  for (const char* key : {"additional_special_tokens", "extra_special_tokens"}) {
    if (!root.has(key)) continue;
    const JsonPlace list = root.at(key);
    if (list.json().is_array())
      for (const auto& item : list.items()) config.extra.push_back(read_named(item));
    else
      for (const auto& [name, item] : list.members()) config.extra.push_back(read_named(item));
  }
}

}  // namespace

std::string TokenizerConfig::name_of(const std::string& key) const {
  const auto found = named.find(key);
  return found == named.end() ? "" : found->second.content;
}

TokenizerConfig read_tokenizer_config(const std::string& json, const std::string& source) {
  const nlohmann::json parsed = parse_json(json, source);
  const JsonPlace root(parsed, source);
  TokenizerConfig config;
  config.text = json;
  for (const char* key :
       {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"})
    if (root.has(key)) config.named.emplace(key, read_named(root.at(key)));
  read_lists(root, config);
  if (root.has("add_bos_token")) config.add_bos = root.at("add_bos_token").boolean();
  if (root.has("add_eos_token")) config.add_eos = root.at("add_eos_token").boolean();
  config.clean_up_spaces = root.boolean_or("clean_up_tokenization_spaces", false);
  config.clean_up_bpe =
      root.boolean_or("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", false);
  if (root.has("pat_str")) config.pattern = root.at("pat_str").text();
  return config;
}

TokenizerConfig load_tokenizer_config(const std::string& folder) {
  const std::string path = (fs::path(folder) / kFile).string();
  return fs::exists(path) ? read_tokenizer_config(read_text(path), path) : TokenizerConfig();
}

void save_with_config(const std::string& path, const std::string& definition, const TokenizerConfig& config) {
  write_atomically(path, definition);
  if (!config.text.empty()) write_atomically((fs::path(path).parent_path() / kFile).string(), config.text);
}

}  // namespace weft
