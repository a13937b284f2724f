// The tokenizer inside a GGUF file, from its `tokenizer.ggml.*` keys. The reader of GGUF files fills in a
// GgufTokenizer; nothing here knows the file format.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/tokenizers/tokenizer.h"

namespace weft {

struct GgufTokenizer {
  std::string source;  // name of the file in messages
  std::string model;   // tokenizer.ggml.model: llama, gpt2, bert, t5, rwkv
  std::string pre;     // tokenizer.ggml.pre: name of the pre-tokenizer of a gpt2 model; "" is "default"
  std::vector<std::string> tokens;  // tokenizer.ggml.tokens, by id
  std::vector<float> scores;        // tokenizer.ggml.scores; may be empty (llama and t5 need them)
  // tokenizer.ggml.token_type: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte; may be empty
  std::vector<int32_t> token_types;
  std::vector<std::string> merges;   // tokenizer.ggml.merges, "left right", best first
  std::string precompiled_charsmap;  // tokenizer.ggml.precompiled_charsmap, bytes (t5)
  std::optional<int64_t> bos, eos, unknown, separator, padding, end_of_turn;  // ..._token_id
  std::optional<bool> add_bos, add_eos;  // tokenizer.ggml.add_bos_token, add_eos_token; default by model
  std::optional<bool> add_space_prefix;  // tokenizer.ggml.add_space_prefix; default true for llama and t5
  std::optional<bool> remove_extra_whitespaces;  // tokenizer.ggml.remove_extra_whitespaces; default false
};

// InputError for lists of different lengths, ids outside of them and merges of unknown tokens; Unsupported
// names a model or pre-tokenizer that weft does not know. save() of the result writes the tokenizer as a
// tokenizer.json, SentencePiece model or RWKV vocabulary, whichever says the same.
std::shared_ptr<const Tokenizer> make_gguf_tokenizer(const GgufTokenizer& definition);

}  // namespace weft
