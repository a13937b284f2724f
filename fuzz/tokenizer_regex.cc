#include "base/error.h"
#include "io/tokenizers/regex.h"
#include "io/tokenizers/utf8.h"

// A pattern, a newline and a text.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string bytes(reinterpret_cast<const char*>(data), size);
  const size_t end = bytes.find('\n');
  if (end == std::string::npos || !weft::is_utf8(bytes)) return 0;
  for (const auto dialect : {weft::RegexDialect::oniguruma, weft::RegexDialect::rust}) {
    try {
      weft::Regex(bytes.substr(0, end), "fuzz", dialect)
          .for_each_match(bytes.substr(end + 1), [](size_t, size_t) {});
    } catch (const weft::InputError&) {
    } catch (const weft::Unsupported&) {
    }
  }
  return 0;
}
