// How GGUF's named pre-tokenizers cut text.
#pragma once

#include <string>
#include <vector>

namespace weft {

struct GgufPattern {
  std::vector<std::string> regexes;  // one after another, each match is a piece
  bool ignore_merges = false;        // a piece that is a token is that token
  bool add_bos = false;              // where the file does not say
};

// `name`: tokenizer.ggml.pre. Unsupported lists the names that are known.
GgufPattern gguf_pattern(const std::string& name, const std::string& source);

}  // namespace weft
