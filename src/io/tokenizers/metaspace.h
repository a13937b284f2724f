// Metaspace, which writes a space as a visible character: a pre-tokenizer and a decoder.
#pragma once

#include <string>

#include "io/json_place.h"

namespace weft {

struct Metaspace {
  enum class Scheme { always, first, never };  // whether one is put before a piece
  std::string replacement;                     // one character
  Scheme scheme = Scheme::always;
  bool split = true;  // cut before each
};

// Also with `add_prefix_space` and `str_rep` of older files.
Metaspace read_metaspace(const JsonPlace& place);

}  // namespace weft
