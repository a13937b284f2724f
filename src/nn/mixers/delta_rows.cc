#include "nn/mixers/delta_rows.h"

#include "ops/conv/conv.h"
#include "ops/norm/norm.h"

namespace weft {

DeltaRows delta_rows(const at::Tensor& projected, const at::Tensor& weight, const at::Tensor& conv_state,
                     const at::Tensor& starts, const DeltaSizes& sizes, ops::Activation activation) {
  const bool silu = activation == ops::Activation::silu;
  const auto conv = ops::short_conv(
      {.x = projected, .weight = weight, .silu = silu, .initial_state = conv_state, .starts = starts});
  const int64_t keys = sizes.heads * sizes.head_dim, values = sizes.value_heads * sizes.value_dim;
  const auto parts =
      (silu ? conv.y : ops::activate(activation, conv.y)).split_with_sizes({keys, keys, values}, -1);
  return {ops::l2_norm(parts[0].unflatten(-1, {sizes.heads, sizes.head_dim}), kDeltaKeyEps),
          ops::l2_norm(parts[1].unflatten(-1, {sizes.heads, sizes.head_dim}), kDeltaKeyEps),
          parts[2].unflatten(-1, {sizes.value_heads, sizes.value_dim}), conv.state};
}

}  // namespace weft
