// Logits of given tokens, in any of the forms that must agree: how others check a model's numbers.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <span>

#include "nn/model.h"

namespace weft {

struct ScoreOptions {
  int64_t chunk = 0;  // tokens a call; 0: all at once (the whole form)
  bool step = false;  // one token at a time in the step form; excludes `chunk`
};

// Calls `on_logits` with the logits [n, V] of consecutive tokens, on the CPU in the model's type, until all T
// are through; at most 256 rows at a time, so that memory is that of the form itself. InputError for ids
// outside the vocabulary, no ids, and both options.
void score(Model& model, std::span<const int64_t> ids, const ScoreOptions& options,
           const std::function<void(const at::Tensor&)>& on_logits);

// The same as one tensor [T, V].
at::Tensor score(Model& model, std::span<const int64_t> ids, const ScoreOptions& options = {});

}  // namespace weft
