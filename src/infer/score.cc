#include "infer/score.h"

#include <c10/core/GradMode.h>

#include <algorithm>

#include "base/error.h"

namespace weft {
namespace {

constexpr int64_t kRows = 256;  // of logits that exist at a time

void check_ids(const Model& model, std::span<const int64_t> ids, const ScoreOptions& options) {
  require(!ids.empty(), "no ids to score");
  require(options.chunk >= 0, "chunk {}: must be at least 1", options.chunk);
  require(!options.step || options.chunk == 0, "step and chunk exclude each other: step is one token a call");
  for (size_t i = 0; i < ids.size(); ++i)
    require(ids[i] >= 0 && ids[i] < model.options().vocab,
            "id {} (at {}) is outside the model's vocabulary of {}", ids[i], i, model.options().vocab);
}

}  // namespace

void score(Model& model, std::span<const int64_t> ids, const ScoreOptions& options,
           const std::function<void(const at::Tensor&)>& on_logits) {
  check_ids(model, ids, options);
  const at::NoGradGuard no_grad;
  const auto length = static_cast<int64_t>(ids.size());
  const int64_t at_once = options.step ? 1 : options.chunk > 0 ? options.chunk : length;
  const auto all = at::from_blob(const_cast<int64_t*>(ids.data()), {1, length}, at::kLong)
                       .clone()
                       .to(model.device());  // [1, T]
  ModelState state = model.initial_state(1);
  for (int64_t begin = 0; begin < length; begin += at_once) {
    const auto part = all.slice(1, begin, std::min(length, begin + at_once));
    const auto hidden = options.step ? model.step(part, state) : model.run(part, state);  // [1, n, D]
    for (int64_t row = 0; row < hidden.size(1); row += kRows)
      on_logits(
          model.logits(hidden.slice(1, row, std::min(hidden.size(1), row + kRows))).squeeze(0).to(at::kCPU));
  }
}

at::Tensor score(Model& model, std::span<const int64_t> ids, const ScoreOptions& options) {
  std::vector<at::Tensor> parts;
  score(model, ids, options, [&](const at::Tensor& logits) { parts.push_back(logits); });
  return at::cat(parts);
}

}  // namespace weft
