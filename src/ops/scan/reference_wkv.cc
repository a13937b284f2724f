// The recurrence of RWKV-4 token by token.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <vector>

#include "ops/scan/wkv.h"
#include "ops/shape.h"

namespace weft::ops::reference {

WkvResult wkv(const Wkv& in) {
  const auto type = accumulate_type(in.v);
  const auto k = in.k.to(type), v = in.v.to(type), w = in.log_decay.to(type), u = in.bonus.to(type);
  const auto nothing = at::full({v.size(0), v.size(2)}, kWkvNothing, v.options());
  auto a = at::zeros_like(nothing), b = a, m = nothing;  // [B, E]
  if (in.initial_state.defined()) {
    const auto parts = in.initial_state.to(type).unbind(1);
    a = parts[0], b = parts[1], m = parts[2];
  }
  std::vector<at::Tensor> tokens;
  for (int64_t t = 0; t < v.size(1); ++t) {
    if (in.starts.defined()) {
      const auto start = in.starts.select(1, t).unsqueeze(1);
      a = a.masked_fill(start, 0), b = b.masked_fill(start, 0), m = m.masked_fill(start, kWkvNothing);
    }
    const auto key = k.select(1, t), value = v.select(1, t);
    const auto top = at::maximum(m, u + key);
    const auto past = at::exp(m - top), now = at::exp(u + key - top);
    tokens.push_back((past * a + now * value) / (past * b + now));
    const auto next = at::maximum(m + w, key);
    const auto keep = at::exp(m + w - next), write = at::exp(key - next);
    a = keep * a + write * value, b = keep * b + write, m = next;
  }
  const auto y = tokens.empty() ? v : at::stack(tokens, 1);
  return {y.to(in.v.scalar_type()), at::stack({a, b, m}, 1)};
}

}  // namespace weft::ops::reference
