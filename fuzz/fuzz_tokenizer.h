// What all targets of tokenizers do: read the bytes as a file; if they are one, encode and decode with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/error.h"
#include "io/tokenizers/tokenizer.h"

namespace weft {

// `make(bytes)` gives a tokenizer or throws. Errors of kind Bug and all others that are not ours get out.
template <class Make>
int fuzz_tokenizer(const uint8_t* data, size_t size, Make make) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  try {
    const std::shared_ptr<const Tokenizer> tokenizer = make(bytes);
    for (const std::string& text : {std::string("Hello  wörld 12 東京\n\xff<s>"), bytes.substr(0, 200)}) {
      const auto ids = tokenizer->encode(text, {.add_special = true});
      StreamDecoder stream(*tokenizer, true);
      for (const int64_t id : ids) stream.push(id);
      stream.finish();
      tokenizer->decode(ids);
      for (const int64_t id : ids) tokenizer->token_bytes(id);
    }
    tokenizer->fingerprint();
  } catch (const InputError&) {
  } catch (const Unsupported&) {
  }
  return 0;
}

}  // namespace weft
