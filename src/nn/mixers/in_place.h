// Entries of a state that kernels write in place.
#pragma once

#include "nn/state.h"

namespace weft {

// state.writable(name), contiguous.
inline at::Tensor& in_place(State& state, std::string_view name) {
  auto& value = state.writable(name);
  if (!value.is_contiguous()) value = value.contiguous();
  return value;
}

}  // namespace weft
