// The layer pattern language. A list of
//   {mixer: NAME, ...}                              one layer
//   {repeat: N, pattern: [...], override: [...]}    a group, N times (repeat may be left out)
// `override: [{layers: [0, 5], set: {window: 0}}]` replaces fields of chosen layers, counted inside the
// expanded group.
#pragma once

#include <vector>

#include "base/config.h"

namespace weft {

// The layers one by one, overrides applied. InputError with file, line and field.
std::vector<Node> expand_pattern(const Node& layers);

}  // namespace weft
