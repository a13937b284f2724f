// The files of OpenAI's tiktoken: a line for each token, its bytes in base64 and its rank, which is its id.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "io/tokenizers/tokenizer.h"
#include "io/tokenizers/tokenizer_config.h"

namespace weft {

// What the file does not say.
struct TiktokenEncoding {
  std::string pattern;                     // regular expression (Rust) whose matches are pieces
  std::map<std::string, int64_t> special;  // special tokens and ids
};

// Of a published vocabulary by the name of its file ("cl100k_base", "qwen"...), else by its number of ranks;
// InputError for one that is not known and has no pattern in its configuration ("pat_str").
TiktokenEncoding known_tiktoken_encoding(const std::string& source, size_t ranks,
                                         const TokenizerConfig& config);

// `ranks`: the text of the file. InputError names the line that is wrong. Without `encoding` it is
// known_tiktoken_encoding().
std::shared_ptr<const Tokenizer> make_tiktoken_tokenizer(const std::string& ranks, const std::string& source,
                                                         const TokenizerConfig& config,
                                                         const TiktokenEncoding* encoding = nullptr);

// What save() of such a tokenizer writes: {"weft_tokenizer": "tiktoken", "pattern", "special", "ranks"}.
std::shared_ptr<const Tokenizer> read_saved_tiktoken(const JsonPlace& place, const std::string& source,
                                                     const TokenizerConfig& config);

// Whether a text looks like such a file.
bool is_tiktoken(std::string_view text);

}  // namespace weft
