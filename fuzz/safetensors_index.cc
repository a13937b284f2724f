// The index of a sharded set of weights: whatever the text, it names files beside it or is refused with an InputError.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "base/error.h"
#include "io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const std::string_view text(reinterpret_cast<const char*>(data), size);
    for (const auto& [tensor, file] : weft::parse_safetensors_index(text, "fuzz.json"))
      if (file.find('/') != std::string::npos || file == "..") std::abort();
  } catch (const weft::InputError&) {
  }
  return 0;
}
