#include "io/tokenizers/charsmap.h"
#include "base/error.h"
#include "io/tokenizers/utf8.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  try {
    const weft::CharsMap map(bytes, "fuzz");
    for (const std::string_view text : {std::string_view("abc é 漢 \xf0\x9f\x99\x82"), bytes})
      for (size_t at = 0; at < text.size(); ++at)
        for (const auto& match : {map.shortest(text.substr(at)), map.longest(text.substr(at))})
          if (match && !weft::is_utf8(match->text)) __builtin_trap();
  } catch (const weft::InputError&) {
  }
  return 0;
}
