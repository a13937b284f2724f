#include "nn/mixers/long_filter.h"

#include "ops/conv/long_conv.h"

namespace weft {
namespace {

// [B, P + T]: true for inputs after which no document begins, so that later tokens may still see them. P inputs stand
// before those of `starts` [B, T].
at::Tensor still_seen(const at::Tensor& starts, int64_t before) {
  const auto later = starts.to(at::kLong).flip(1).cumsum(1).flip(1);  // starts at t and after
  const auto own = later - starts.to(at::kLong);                      // after t
  return at::cat({later.slice(1, 0, 1).expand({starts.size(0), before}), own}, 1) == 0;
}

}  // namespace

at::Tensor run_filter(const at::Tensor& kernel, const at::Tensor& u, State& state, const Context& context,
                      const std::string& name) {
  const int64_t before = kernel.size(1) - 1, tokens = u.size(1);
  if (tokens == 0) return u;
  const auto all = at::cat({state.at(name).to(u.scalar_type()), u}, 1);  // [B, L - 1 + T, E]
  at::Tensor starts;
  if (context.starts.defined())
    starts = at::cat({at::zeros({u.size(0), before}, context.starts.options()), context.starts}, 1);
  const auto y = ops::long_conv(all, kernel, starts).slice(1, before);
  auto kept = all.slice(1, tokens);
  if (context.starts.defined()) {
    const auto seen = still_seen(context.starts, before).slice(1, tokens).unsqueeze(-1);
    kept = at::where(seen, kept, at::zeros_like(kept));
  }
  state.set(name, kept);
  return y;
}

at::Tensor step_filter(const at::Tensor& kernel, const at::Tensor& u, State& state, const std::string& name) {
  const auto all = at::cat({state.at(name).to(u.scalar_type()), u}, 1);  // [B, L, E]
  state.set(name, all.slice(1, 1));
  const auto wide = kernel.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return (all.to(wide) * kernel.to(wide).flip(1).t()).sum(1, /*keepdim=*/true).to(u.scalar_type());
}

void add_filter_state(State& state, int64_t batch, int64_t channels, int64_t length,
                      const at::TensorOptions& options, const std::string& name) {
  state.set(name, at::zeros({batch, length - 1, channels}, options));
}

}  // namespace weft
