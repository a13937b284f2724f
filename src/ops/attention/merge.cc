#include <limits>

#include "ops/attention/attention.h"
#include "ops/shape.h"

namespace weft::ops {

AttentionResult merge_attention(const AttentionResult& a, const AttentionResult& b) {
  constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();
  require_shape("merge_attention", "b.out", b.out, a.out.sizes());
  require_shape("merge_attention", "a.lse", a.lse, a.out.sizes().slice(0, a.out.dim() - 1));
  require_shape("merge_attention", "b.lse", b.lse, a.lse.sizes());

  // The shift is a constant for autograd: the result does not depend on it.
  const auto largest = at::maximum(a.lse, b.lse).detach();
  const auto shift = largest.masked_fill(largest == kMinusInfinity, 0);
  const auto weight_a = at::exp(a.lse - shift), weight_b = at::exp(b.lse - shift);
  const auto total = weight_a + weight_b;
  const auto none = total == 0;
  const auto safe = total.masked_fill(none, 1);
  const auto lse = (at::log(safe) + shift).masked_fill(none, kMinusInfinity);
  const auto out = a.out * (weight_a / safe).unsqueeze(-1) + b.out * (weight_b / safe).unsqueeze(-1);
  return {out.to(a.out.scalar_type()), lse};
}

}  // namespace weft::ops
