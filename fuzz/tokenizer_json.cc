#include "fuzz_tokenizer.h"
#include "io/tokenizers/json_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return weft::fuzz_tokenizer(
      data, size, [](const std::string& bytes) { return weft::make_json_tokenizer(bytes, "fuzz.json"); });
}
