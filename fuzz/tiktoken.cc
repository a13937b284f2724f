#include "io/tokenizers/tiktoken.h"
#include "fuzz_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return weft::fuzz_tokenizer(data, size, [](const std::string& bytes) {
    return weft::make_tiktoken_tokenizer(bytes, "cl100k_base.tiktoken", {});
  });
}
