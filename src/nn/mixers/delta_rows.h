// Queries, keys and values of the delta-rule mixers: f(conv(W x)) in heads, q and k of unit length. Yang et al.
// 2024, arXiv:2406.06484.
#pragma once

#include "nn/mixer.h"
#include "ops/activation/named.h"

namespace weft {

constexpr double kDeltaKeyEps = 1e-6;  // of the squared length of q and k

struct DeltaSizes {
  int64_t heads = 1, head_dim = 1;         // of q and k
  int64_t value_heads = 1, value_dim = 1;  // of v
  int64_t channels() const { return 2 * heads * head_dim + value_heads * value_dim; }
};

struct DeltaRows {
  at::Tensor q, k;        // [B, T, H, K]
  at::Tensor v;           // [B, T, U, V]
  at::Tensor conv_state;  // [B, W - 1, channels]
};

// `projected` [B, T, channels] holds q, k and v side by side; `weight` [channels, W]; `conv_state` as left by the
// tokens before; f is `activation`.
DeltaRows delta_rows(const at::Tensor& projected, const at::Tensor& weight, const at::Tensor& conv_state,
                     const at::Tensor& starts, const DeltaSizes& sizes,
                     ops::Activation activation = ops::Activation::silu);

}  // namespace weft
