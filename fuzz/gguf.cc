// GGUF headers: any bytes give a header that holds or an InputError, and tensors of a header that holds can be read.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "io/gguf/gguf.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string path = "fuzz.gguf";
  const std::string_view file(reinterpret_cast<const char*>(data), size);
  try {
    const auto header = weft::parse_gguf(file, path);
    constexpr uint64_t kLargest = 1 << 20;
    for (const auto& [name, tensor] : header.tensors) {
      const auto& info = weft::ggml_type_info(tensor.type);
      if (tensor.bytes > kLargest || !info.decode) continue;
      std::vector<float> block(static_cast<size_t>(info.block));
      for (uint64_t at = 0; at < tensor.bytes; at += static_cast<uint64_t>(info.bytes))
        info.decode(data + tensor.begin + at, block.data());
    }
  } catch (const weft::InputError&) {
  }
  return 0;
}
