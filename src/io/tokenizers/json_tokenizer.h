// Tokenizers as Hugging Face's tokenizer.json describes them.
#pragma once

#include <memory>
#include <string>

#include "io/tokenizers/tokenizer.h"
#include "io/tokenizers/tokenizer_config.h"

namespace weft {

// Understood: all models, normalizers, pre-tokenizers, post-processors and decoders of the library, each in
// the header of its kind; `truncation` and `padding` are settings of a request and not applied. Anything else
// is an InputError or Unsupported with its place in the JSON. Differs from the library: ids of added tokens are
// those of the file; bytes that are not UTF-8 are kept where the vocabulary has tokens for them.
// `json`: the text of the file; `source`: its name in messages.
std::shared_ptr<const Tokenizer> make_json_tokenizer(const std::string& json, const std::string& source,
                                                     const TokenizerConfig& config = {});

// Any file that load_tokenizer reads, by its content.
std::shared_ptr<const Tokenizer> read_tokenizer(const std::string& text, const std::string& source,
                                                const TokenizerConfig& config = {});

}  // namespace weft
