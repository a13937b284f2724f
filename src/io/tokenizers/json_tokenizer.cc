#include "io/tokenizers/json_tokenizer.h"

#include "base/error.h"
#include "io/tokenizers/pipeline_tokenizer.h"

namespace weft {

namespace {

// The definition with absent members as null, after a check of what stands at the top.
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

std::shared_ptr<const Tokenizer> make_json_tokenizer(const std::string& json, const std::string& source,
                                                     const TokenizerConfig& config) {
  const nlohmann::json root = checked_root(parse_json(json, source), source);
  const JsonPlace place(root, source);
  TokenizerParts parts{.source = source,
                       .normalizer = Normalizer(place.at("normalizer")),
                       .pre_tokenizer = PreTokenizer(place.at("pre_tokenizer")),
                       .model = read_token_model(place.at("model")),
                       .added = read_added_tokens(place.at("added_tokens")),
                       .around = read_post_processor(place.at("post_processor")),
                       .decoder = TokenDecoder(place.at("decoder")),
                       .definition = json};
  return std::make_shared<PipelineTokenizer>(std::move(parts), config);
}

}  // namespace weft
