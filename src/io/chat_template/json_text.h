// Values as JSON text, as Python's json.dumps writes it.
#pragma once

#include <optional>
#include <string>

#include "io/chat_template/value.h"

namespace weft::jinja {

struct JsonStyle {
  std::optional<std::string> indent;  // of a level; none: all in one line
  std::string item_separator = ", ", key_separator = ": ";
  bool ascii = false, sorted = false;
};

// Error for values that JSON has nothing for: undefined ones, functions, generators.
std::string json_text(const Value& value, const JsonStyle& style);

}  // namespace weft::jinja
