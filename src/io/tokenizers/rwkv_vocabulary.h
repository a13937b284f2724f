// RWKV's World vocabulary: a line for each token, its id, its bytes as a Python literal ('...' or b'...') and
// their number. Text is cut greedily into the longest tokens.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "io/tokenizers/tokenizer.h"
#include "io/tokenizers/tokenizer_config.h"

namespace weft {

// Tokens by id, "" where there is none; id 0 ends documents and is never found in text. InputError, naming
// `source`, unless every single byte is a token.
std::shared_ptr<const Tokenizer> make_rwkv_tokenizer(const std::vector<std::string>& tokens,
                                                     const std::string& source,
                                                     const TokenizerConfig& config = {});

// The text of a file; InputError names the line that is wrong.
std::vector<std::string> read_rwkv_vocabulary(std::string_view text, const std::string& source);
std::string write_rwkv_vocabulary(const std::vector<std::string>& tokens);
// The bytes of what stands between the quotes of a literal of bytes, as GGUF files have it; the text in them is
// UTF-8.
std::string read_rwkv_literal(std::string_view inside, const std::string& where);
// Whether a text looks like such a file.
bool is_rwkv_vocabulary(std::string_view text);

}  // namespace weft
