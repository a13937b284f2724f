#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "io/tokenizers/byte_tokenizer.h"
#include "io/tokenizers/json_tokenizer.h"
#include "io/tokenizers/letters_tokenizer.h"
#include "io/tokenizers/rwkv_vocabulary.h"
#include "io/tokenizers/sentencepiece_tokenizer.h"
#include "io/tokenizers/tiktoken.h"
#include "io/tokenizers/tokenizer.h"

namespace fs = std::filesystem;

namespace weft {

namespace {

constexpr const char* kOwn = "weft_tokenizer";  // the member that our own files have

std::shared_ptr<const Tokenizer> named_tokenizer(const std::string& name) {
  if (name == "bytes") return std::make_shared<ByteTokenizer>();
  return make_named_alphabet(name);
}

// The files of a folder that may hold its tokenizer: one with a usual name, else all with a usual ending.
std::vector<std::string> files_in(const std::string& folder) {
  for (const char* name :
       {"tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model"})
    if (const std::string path = folder + "/" + name; fs::exists(path)) return {path};
  std::vector<std::string> others;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (name.ends_with(".tiktoken") || (name.starts_with("rwkv_vocab") && name.ends_with(".txt")))
      others.push_back(entry.path().string());
  }
  return others;
}

std::string file_in(const std::string& folder) {
  const auto files = files_in(folder);
  require(files.size() == 1,
          "{}: holds {} tokenizers, expected one: tokenizer.json, tokenizer.model, *.tiktoken or "
          "rwkv_vocab*.txt",
          folder, files.size());
  return files[0];
}

// One of our own files; null for another JSON file.
std::shared_ptr<const Tokenizer> read_own(const std::string& text, const std::string& path,
                                          const TokenizerConfig& config) {
  if (text.find(kOwn) == std::string::npos) return nullptr;
  const nlohmann::json json = parse_json(text, path);
  if (!json.is_object() || !json.contains(kOwn)) return nullptr;
  const JsonPlace place(json, path);
  const std::string name = place.at(kOwn).text();
  if (name == "tiktoken") return read_saved_tiktoken(place, path, config);
  place.only({kOwn});
  auto tokenizer = named_tokenizer(name);
  require(tokenizer != nullptr, "{}: '{}' is no tokenizer; expected bytes, characters, dna or dna-K",
          place.at(kOwn).where(), name);
  return tokenizer;
}

bool is_json(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t\r\n\xEF\xBB\xBF");
  return first != std::string::npos && (text[first] == '{' || text[first] == '[');
}

}  // namespace

bool holds_tokenizer(const std::string& folder) { return !files_in(folder).empty(); }

std::shared_ptr<const Tokenizer> load_tokenizer(const std::string& where) {
  if (auto named = named_tokenizer(where)) return named;
  require(fs::exists(where),
          "{}: there is no such tokenizer; expected bytes, characters, dna, dna-K, a tokenizer's file or a "
          "folder that holds one",
          where);
  const std::string path = fs::is_directory(where) ? file_in(where) : where;
  const std::string text = read_text(path);
  const TokenizerConfig config = load_tokenizer_config(fs::path(path).parent_path().string());
  return read_tokenizer(text, path, config);
}

std::shared_ptr<const Tokenizer> read_tokenizer(const std::string& text, const std::string& source,
                                                const TokenizerConfig& config) {
  require(!text.empty(), "{}: is empty", source);
  if (is_tiktoken(text)) return make_tiktoken_tokenizer(text, source, config);
  if (is_rwkv_vocabulary(text))
    return make_rwkv_tokenizer(read_rwkv_vocabulary(text, source), source, config);
  if (static_cast<unsigned char>(text[0]) == 0x0A && !is_json(text))  // the tag of the first piece
    return make_sentencepiece_tokenizer(parse_sentencepiece_model(text, source), text, source, config);
  if (auto own = read_own(text, source, config)) return own;
  return make_json_tokenizer(text, source, config);
}

}  // namespace weft
