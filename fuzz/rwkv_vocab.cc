#include "fuzz_tokenizer.h"
#include "io/tokenizers/rwkv_vocabulary.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return weft::fuzz_tokenizer(data, size, [](const std::string& bytes) {
    return weft::make_rwkv_tokenizer(weft::read_rwkv_vocabulary(bytes, "fuzz.txt"), "fuzz.txt");
  });
}
