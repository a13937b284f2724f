// What the mixers on one real scan share: h_t = a_t * h_{t-1} + b_t.
#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "nn/mixer.h"
#include "ops/scan/scan.h"

namespace weft {

struct ScanGates {
  at::Tensor a, b;  // [B, T, E] fp32 (fp64 for fp64)
};

// h [B, T, E] over T tokens; moves state "h" [B, E] on.
inline at::Tensor run_scan(const ScanGates& gates, State& state, const Context& context) {
  const auto result = ops::scan(gates.a, gates.b, state.at("h"), context.starts);
  state.set("h", result.state);
  return result.h;
}

// One token, in place.
inline at::Tensor step_scan(const ScanGates& gates, State& state) {
  return ops::scan_step(gates.a, gates.b, state.writable("h"));
}

// The tokens as a map of "h": the product of all a, nothing when a document begins among them.
inline AffineMap scan_summary(const ScanGates& gates, const Context& context) {
  auto factor = gates.a.prod(1);
  if (context.starts.defined())
    factor = at::where(context.starts.any(1).unsqueeze(-1), at::zeros_like(factor), factor);
  return {factor, ops::scan(gates.a, gates.b, {}, context.starts).state};
}

}  // namespace weft
