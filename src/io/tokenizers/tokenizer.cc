#include "io/tokenizers/tokenizer.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/files.h"
#include "io/tokenizers/bpe_tokenizer.h"
#include "io/tokenizers/byte_tokenizer.h"
#include "io/tokenizers/json_place.h"
#include "io/tokenizers/utf8.h"

namespace fs = std::filesystem;

namespace weft {

std::string Tokenizer::decode(const std::vector<int64_t>& ids, bool skip_special) const {
  std::string text;
  for (const int64_t id : ids)
    if (const std::string_view bytes = token_bytes(id); !(skip_special && is_special(id))) text += bytes;
  return text;
}

std::string StreamDecoder::push(int64_t id) {
  const std::string_view bytes = tokenizer_->token_bytes(id);
  if (skip_special_ && tokenizer_->is_special(id)) return "";
  pending_ += bytes;
  size_t at = 0;
  while (at < pending_.size()) {
    const Utf8Step step = utf8_step(pending_, at);
    if (step.kind == Utf8Step::Kind::incomplete) break;
    at += step.bytes;
  }
  std::string ready = to_utf8(std::string_view(pending_).substr(0, at));
  pending_.erase(0, at);
  return ready;
}

std::string StreamDecoder::finish() {
  std::string rest = to_utf8(pending_);
  pending_.clear();
  return rest;
}

namespace {

// "eos_token" of a tokenizer_config.json: text, or an object with "content"; "" when there is none.
std::string configured_end(const std::string& path) {
  if (!fs::exists(path)) return "";
  const nlohmann::json json = parse_json(read_text(path), path);
  const JsonPlace config(json, path);
  if (!config.has("eos_token")) return "";
  const JsonPlace token = config.at("eos_token");
  return token.json().is_object() ? token.at("content").text() : token.text();
}

bool is_byte_definition(const std::string& text) {
  if (text.size() > 200) return false;
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  return json.is_object() && json.contains("weft_tokenizer") && json["weft_tokenizer"] == "bytes";
}

}  // namespace

std::shared_ptr<const Tokenizer> load_tokenizer(const std::string& where) {
  if (where == "bytes") return std::make_shared<ByteTokenizer>();
  const std::string path = fs::is_directory(where) ? where + "/tokenizer.json" : where;
  require(fs::exists(path),
          "{}: there is no such tokenizer; expected 'bytes', a tokenizer.json or a folder that holds one",
          path);
  const std::string text = read_text(path);
  if (is_byte_definition(text)) return std::make_shared<ByteTokenizer>();
  const std::string config = (fs::path(path).parent_path() / "tokenizer_config.json").string();
  return std::make_shared<BpeTokenizer>(text, path, configured_end(config));
}

}  // namespace weft
