#include "fuzz_tokenizer.h"
#include "io/tokenizers/sentencepiece_tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return weft::fuzz_tokenizer(data, size, [](const std::string& bytes) {
    return weft::make_sentencepiece_tokenizer(weft::parse_sentencepiece_model(bytes, "fuzz.model"), bytes,
                                              "fuzz.model");
  });
}
