// Diagonal state spaces that all channels share, as S5 and LRU: x [B, T, D] is mapped to P complex states and back by
// matrices, h_t = a h_{t-1} + B x_t, y_t = scale Re(C h_t) + skip x_t.
#pragma once

#include "nn/mixer.h"

namespace weft {

struct MimoSystem {
  at::Tensor a;     // [P] complex fp64
  at::Tensor b;     // [P, D] complex fp64
  at::Tensor c;     // [D, P] complex fp64, with its scale
  at::Tensor skip;  // [D]
};
// Runs x and moves entry "h" [B, P, 2, 1] of `state` on. Returns [B, T, D] fp32 or fp64.
at::Tensor run_mimo(const MimoSystem& system, const at::Tensor& x, State& state, const Context& context);
// One token, in place.
at::Tensor step_mimo(const MimoSystem& system, const at::Tensor& x, State& state);
Summary mimo_summary(const MimoSystem& system, const at::Tensor& x, const Context& context);
State mimo_state(int64_t batch, int64_t states, const at::TensorOptions& options);

}  // namespace weft
