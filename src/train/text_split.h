// The end of a text held out for validation.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "io/datasets/text_source.h"

namespace weft {

// Where a text source is cut: bytes of documents before the cut. A document that the cut falls into is itself
// cut after the first line that ends at or beyond it, or between two characters when no other line follows.
struct TextSplit {
  uint64_t bytes = 0;
};

// Cuts off the last `fraction` of all bytes; reads the source once. Where a document ends within half a
// fraction of that place, the cut is there.
TextSplit split_text(TextSource& source, double fraction);

// The documents before (or from) the cut of a fresh source over the same files.
std::unique_ptr<TextSource> before_split(std::unique_ptr<TextSource> source, const TextSplit& split);
std::unique_ptr<TextSource> after_split(std::unique_ptr<TextSource> source, const TextSplit& split);

}  // namespace weft
