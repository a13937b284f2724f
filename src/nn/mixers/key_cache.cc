#include "nn/mixers/key_cache.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <algorithm>

namespace weft {
namespace {

// Columns that no row needs any more, from the front on, go.
void forget(State& state, const at::Tensor& needed, bool with_index) {
  const auto used = needed.any(0).nonzero();
  const int64_t columns = needed.size(1);
  const int64_t first = used.numel() ? used[0].item<int64_t>() : columns;
  if (first == 0) return;
  for (const char* name : {"k", "v", "slots"}) state.keep(name, first, columns);
  if (with_index) state.keep("index", first, columns);
}

}  // namespace

void start_key_cache(State& state, int64_t batch, int64_t heads, int64_t k_dim, int64_t v_dim,
                     const at::TensorOptions& options) {
  state.append("k", at::zeros({batch, 0, heads, k_dim}, options));
  state.append("v", at::zeros({batch, 0, heads, v_dim}, options));
  state.append("slots", at::zeros({batch, 0}, options.dtype(at::kLong)));
}

Keys extend_key_cache(const at::Tensor& k, const at::Tensor& v, int64_t window, State& state,
                      const Context& context, const at::Tensor& index) {
  const Keys fresh{k, v, context.positions, context.segments};
  if (!context.keep_state || k.size(1) == 0) return join_keys(Keys::from(state), fresh);
  const auto segments = join_segments(state.at("slots"), fresh);
  state.append("k", k);
  state.append("v", v);
  state.append("slots", context.positions);
  if (index.defined()) state.append("index", index);
  auto keys = Keys::from(state);
  keys.segments = segments;
  auto needed = state.at("slots") >= 0;
  if (context.segments.defined()) needed = needed.logical_and(keys.segments == context.segments.slice(1, -1));
  if (window > 0)
    needed = needed.logical_and(state.at("slots") > context.positions.slice(1, -1) + 1 - window);
  if (!context.segments.defined() && window == 0) return keys;
  state.set("slots", at::where(needed, state.at("slots"), -1));
  forget(state, needed, index.defined());
  return keys;
}

int64_t key_cache_bytes(int64_t tokens, int64_t window, int64_t heads, int64_t k_dim, int64_t v_dim,
                        at::ScalarType dtype) {
  const int64_t column = heads * (k_dim + v_dim) * static_cast<int64_t>(c10::elementSize(dtype)) + 8;
  return column * (window > 0 ? std::min(tokens, window - 1) : tokens);
}

}  // namespace weft
