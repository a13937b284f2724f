// tokenizer_config.json beside a tokenizer: names of special tokens, flags of added tokens, what decoding does.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "io/tokenizers/added_tokens.h"

namespace weft {

struct TokenizerConfig {
  std::map<std::string, AddedToken> named;  // "eos_token" and its likes; ids are not set
  std::vector<AddedToken> added;            // added_tokens_decoder, with ids
  std::vector<AddedToken> extra;            // additional_special_tokens; ids are not set
  std::optional<bool> add_bos, add_eos;     // add_bos_token, add_eos_token
  bool clean_up_spaces = false;             // clean_up_tokenization_spaces
  bool clean_up_bpe = false;                // ..._for_bpe_even_though_it_will_corrupt_output
  std::string pattern;                      // of a tiktoken vocabulary: "pat_str"
  std::string text;                         // the file, to be written beside the tokenizer again; "" for none

  // The content of "eos_token", "bos_token"...; "" when there is none.
  std::string name_of(const std::string& key) const;
};

// InputError for members of a wrong type; members that tokenizing does not need are not looked at.
TokenizerConfig read_tokenizer_config(const std::string& json, const std::string& source);
// The file of this name in `folder`; a default one when there is none.
TokenizerConfig load_tokenizer_config(const std::string& folder);
// Writes `definition` to `path` and the configuration, if there is one, beside it.
void save_with_config(const std::string& path, const std::string& definition, const TokenizerConfig& config);

// What ends a document under the names that published vocabularies use, best first.
extern const std::vector<std::string> kUsualEndNames;

}  // namespace weft
