// The tokenizer in the metadata of a GGUF file.
#pragma once

#include <memory>
#include <string>

#include "io/gguf/metadata.h"
#include "io/tokenizers/tokenizer.h"

namespace weft {

// From tokenizer.ggml.*; null when the file has none ("none" or no tokenizer.ggml.model). Unsupported for kinds and
// pre-tokenizers that are not known.
std::shared_ptr<const Tokenizer> read_gguf_tokenizer(const GgufMetadata& metadata);

// Writes the tokenizer.json in `folder` as tokenizer.ggml.*, with `vocab` tokens. The name of the pre-tokenizer is that
// whose tokenizer cuts a sample of many scripts as `tokenizer`, the same tokenizer opened by weft, does. False, and nothing
// is written, for kinds other than byte-level BPE and for pre-tokenizers that GGUF has no name for.
bool write_gguf_tokenizer(const std::string& folder, const Tokenizer& tokenizer, int64_t vocab,
                          GgufMetadata& metadata);

}  // namespace weft
