#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "ops/moe/moe.h"
#include "ops/shape.h"

namespace weft::ops::reference {

at::Tensor mix_experts(const at::Tensor& x, const Routes& routes, const Experts& experts) {
  const auto wide = accumulate_type(x);
  const auto tokens = x.to(wide), up = experts.up.to(wide), down = experts.down.to(wide);
  auto y = at::zeros_like(tokens);
  for (int64_t e = 0; e < up.size(0); ++e) {
    auto h = at::linear(tokens, up[e]);  // [N, 2 I]
    if (experts.gated) {
      const auto halves = h.chunk(2, -1);
      h = gated_hidden(experts, halves[0], halves[1]);
    } else {
      h = activate(experts.activation, h);
    }
    const auto share = at::where(routes.experts == e, routes.weights, 0).sum(1, true);  // [N, 1]
    y = y + share * at::linear(h, down[e]);
  }
  return y.to(x.scalar_type());
}

}  // namespace weft::ops::reference
