// The header of a safetensors file: whatever the bytes, it is read or refused with an InputError.
#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    weft::parse_safetensors_header({reinterpret_cast<const char*>(data), size}, "fuzz.safetensors");
  } catch (const weft::InputError&) {
  }
  return 0;
}
