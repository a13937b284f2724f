// What a tokenizer.json puts around an encoded text.
#pragma once

#include <cstdint>
#include <vector>

#include "io/json_place.h"

namespace weft {

struct SpecialIds {
  std::vector<int64_t> before, after;
};

// ByteLevel (moves offsets only), TemplateProcessing, BertProcessing, RobertaProcessing, Sequence.
// Unsupported names another type; null gives nothing.
SpecialIds read_post_processor(const JsonPlace& place);

}  // namespace weft
