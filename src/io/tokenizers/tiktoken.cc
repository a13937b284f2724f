#include "io/tokenizers/tiktoken.h"

#include <charconv>
#include <filesystem>

#include "base/error.h"
#include "io/tokenizers/base64.h"
#include "io/tokenizers/bpe_model.h"
#include "io/tokenizers/pipeline_tokenizer.h"

namespace weft {

namespace {

constexpr const char* kGpt2 = R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kCl100k =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)";
constexpr const char* kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kQwen =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kO200k =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr const char* kKimi =
    R"([\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+)"
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+)"
    R"([\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?)"
    R"(|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

struct Known {
  std::vector<std::string> names;  // of files, without what follows the first dot
  size_t ranks;
  const char* pattern;
  std::map<std::string, int64_t> special;
};

const std::vector<Known>& known_encodings() {
  static const std::vector<Known> known = {
      {{"r50k_base", "gpt2"}, 50256, kGpt2, {{"<|endoftext|>", 50256}}},
      {{"p50k_base"}, 50280, kGpt2, {{"<|endoftext|>", 50256}}},
      {{"cl100k_base"},
       100256,
       kCl100k,
       {{"<|endoftext|>", 100257},
        {"<|fim_prefix|>", 100258},
        {"<|fim_middle|>", 100259},
        {"<|fim_suffix|>", 100260},
        {"<|endofprompt|>", 100276}}},
      {{"o200k_base"}, 199998, kO200k, {{"<|endoftext|>", 199999}, {"<|endofprompt|>", 200018}}},
      {{"llama3"},
       128000,
       kLlama3,
       {{"<|begin_of_text|>", 128000},
        {"<|end_of_text|>", 128001},
        {"<|start_header_id|>", 128006},
        {"<|end_header_id|>", 128007},
        {"<|eot_id|>", 128009}}},
      {{"qwen"},
       151643,
       kQwen,
       {{"<|endoftext|>", 151643}, {"<|im_start|>", 151644}, {"<|im_end|>", 151645}}},
      {{"kimi"}, 163584, kKimi, {{"[BOS]", 163584}, {"[EOS]", 163585}}}};
  return known;
}

// One "base64 rank" line into `tokens`.
void read_rank_line(std::string_view line, const std::string& where, std::vector<std::string>& tokens) {
  const size_t space = line.find(' ');
  require(space != std::string_view::npos, "{}: expected a token in base64, a space and a rank", where);
  const auto bytes = from_base64(line.substr(0, space));
  require(bytes.has_value() && !bytes->empty(), "{}: the token is not base64", where);
  size_t rank = 0;
  const auto [end, error] = std::from_chars(line.data() + space + 1, line.data() + line.size(), rank);
  require(error == std::errc() && end == line.data() + line.size() && rank < kMaxId,
          "{}: the rank is not a whole number from 0 to {}", where, kMaxId - 1);
  if (rank >= tokens.size()) tokens.resize(rank + 1);
  require(tokens[rank].empty(), "{}: the rank {} is there twice", where, rank);
  tokens[rank] = *bytes;
}

std::vector<std::string> read_ranks(std::string_view text, const std::string& source) {
  std::vector<std::string> tokens;
  size_t number = 0;
  for (size_t at = 0; at < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', at), text.size());
    std::string_view line = text.substr(at, end - at);
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!line.empty()) read_rank_line(line, fmt::format("{}:{}", source, number + 1), tokens);
    at = end + 1;
  }
  require(!tokens.empty(), "{}: has no tokens", source);
  return tokens;
}

std::string definition_of(const std::string& ranks, const TiktokenEncoding& encoding) {
  return nlohmann::json{{"weft_tokenizer", "tiktoken"},
                        {"pattern", encoding.pattern},
                        {"special", encoding.special},
                        {"ranks", ranks}}
      .dump();
}

}  // namespace

TiktokenEncoding known_tiktoken_encoding(const std::string& source, size_t ranks,
                                         const TokenizerConfig& config) {
  std::string name = std::filesystem::path(source).filename().string();
  name = name.substr(0, name.find('.'));
  const Known* found = nullptr;
  for (const Known& known : known_encodings())
    if (std::find(known.names.begin(), known.names.end(), name) != known.names.end()) found = &known;
  for (const Known& known : known_encodings())
    if (!found && known.ranks == ranks) found = &known;
  TiktokenEncoding encoding;
  if (found) encoding = {found->pattern, found->special};
  if (!config.pattern.empty()) encoding.pattern = config.pattern;
  require(
      !encoding.pattern.empty(),
      "{}: the file does not say by which pattern text is cut; put it into tokenizer_config.json beside it "
      "as \"pat_str\", or give the file the name of a known encoding (cl100k_base, o200k_base, ...)",
      source);
  return encoding;
}

std::shared_ptr<const Tokenizer> make_tiktoken_tokenizer(const std::string& ranks, const std::string& source,
                                                         const TokenizerConfig& config,
                                                         const TiktokenEncoding* encoding) {
  const std::vector<std::string> tokens = read_ranks(ranks, source);
  const TiktokenEncoding used = encoding ? *encoding : known_tiktoken_encoding(source, tokens.size(), config);
  TokenizerParts parts{
      .source = source,
      .pre_tokenizer = PreTokenizer::of_bytes(used.pattern, source + ": pattern", RegexDialect::rust),
      .model = std::make_unique<BpeModel>(tokens, source),
      .definition = definition_of(ranks, used),
      .kind = "tiktoken"};
  for (const auto& [content, id] : used.special) {
    const auto same = [&](const AddedToken& token) { return token.id == id; };
    // A configuration may give the id another name.
    if (std::find_if(config.added.begin(), config.added.end(), same) == config.added.end())
      parts.added.push_back({.id = id, .content = content, .special = true});
  }
  return std::make_shared<PipelineTokenizer>(std::move(parts), config);
}

std::shared_ptr<const Tokenizer> read_saved_tiktoken(const JsonPlace& place, const std::string& source,
                                                     const TokenizerConfig& config) {
  place.only({"weft_tokenizer", "pattern", "special", "ranks"});
  TiktokenEncoding encoding{place.at("pattern").text(), {}};
  for (const auto& [content, id] : place.at("special").members()) {
    require(!content.empty(), "{}: has a token without text", place.at("special").where());
    encoding.special.emplace(content, id.integer());
  }
  return make_tiktoken_tokenizer(place.at("ranks").text(), source, config, &encoding);
}

bool is_tiktoken(std::string_view text) {
  const std::string_view line = text.substr(0, text.find('\n'));
  const size_t space = line.find(' ');
  return space != std::string_view::npos && space > 0 && line.size() < 4096 &&
         from_base64(line.substr(0, space)) &&
         line.find_first_not_of("0123456789\r", space + 1) == std::string_view::npos;
}

}  // namespace weft
