#include "nn/context.h"

#include "base/error.h"

namespace weft {
namespace {

template <class F>
Context map_tensors(const Context& from, F&& change) {
  Context result = from;
  result.exports = nullptr;
  for (auto* tensor : {&result.positions, &result.starts, &result.segments})
    if (tensor->defined()) *tensor = change(*tensor, true);
  for (auto& [port, strand] : result.imports)
    for (auto& [name, tensor] : strand.tensors) tensor = change(tensor, strand.per_token);
  return result;
}

}  // namespace

const at::Tensor& Strand::at(const std::string& name) const {
  const auto found = tensors.find(name);
  require(found != tensors.end(), "the imported strand carries no '{}'", name);
  return found->second;
}

const at::Tensor& Strand::only() const {
  require(tensors.size() == 1, "the strand carries {} tensors, expected one", tensors.size());
  return tensors.begin()->second;
}

const Strand& Context::import(const std::string& port) const {
  const auto found = imports.find(port);
  require(found != imports.end(), "nothing is imported as '{}'; give the layer an import", port);
  return found->second;
}

Context Context::at_positions(const at::Tensor& position, int64_t tokens, const at::Tensor& starts) {
  Context context;
  const auto index = at::arange(tokens, position.options());  // [T]
  context.positions = position.unsqueeze(1) + index;          // [B, T]
  if (starts.defined() && tokens > 0) {
    context.starts = starts;
    context.segments = starts.to(at::kLong).cumsum(1);
    const auto last_start = std::get<0>(at::where(starts, index, at::full_like(index, -1)).cummax(1));
    context.positions = at::where(last_start >= 0, index - last_start, context.positions);
  }
  return context;
}

Context Context::slice(int64_t begin, int64_t end) const {
  Context result = map_tensors(
      *this, [&](const at::Tensor& x, bool per_token) { return per_token ? x.slice(1, begin, end) : x; });
  // Segments count from the document that the state continues, which is now another one.
  if (result.segments.defined() && begin > 0)
    result.segments = result.segments - segments.slice(1, begin - 1, begin);
  return result;
}

Context Context::select(const at::Tensor& rows) const {
  return map_tensors(*this, [&](const at::Tensor& x, bool) { return x.index_select(0, rows); });
}

Context Context::reversed() const {
  at::Tensor backwards;
  if (starts.defined()) {
    // A reversed document begins at its last token: just before the next document's start, or at the end of
    // the call.
    const auto end = at::ones_like(starts.slice(1, 0, 1));
    backwards = at::cat({starts.slice(1, 1), end}, 1).flip(1);
  }
  Context result =
      at_positions(at::zeros({positions.size(0)}, positions.options()), positions.size(1), backwards);
  result.imports = map_tensors(*this, [](const at::Tensor& x, bool per_token) {
                     return per_token ? x.flip(1) : x;
                   }).imports;
  result.causal = causal;
  result.dtype = dtype;
  result.training = training;
  result.keep_state = keep_state;
  return result;
}

}  // namespace weft
