// What the RWKV mixers share. Peng et al. 2023, arXiv:2305.13048 (RWKV-4); 2024, arXiv:2404.05892 (5 and 6); 2025,
// arXiv:2503.14456 (RWKV-7).
#pragma once

#include "nn/mixer.h"

namespace weft {

struct TokenShift {
  at::Tensor
      delta;  // [B, T, D] the token before, less the token: x + mu * delta goes from x to the one before
  at::Tensor last;  // [B, 1, D] the last token, for the next call
};
// `last` [B, 1, D] is the token before x [B, T, D], zero before the first; `starts` [B, T] bool or undefined.
TokenShift token_shift(const at::Tensor& x, const at::Tensor& last, const at::Tensor& starts);

// x and the token before it, mixed by channel with mu [D]: x + mu * delta; where `current`, mu is the share of x
// itself instead of the one before: x + (1 - mu) * delta, as RWKV-4 and 5 hold their weights.
at::Tensor mix_tokens(const at::Tensor& x, const TokenShift& shift, const at::Tensor& mu, bool current);
// Of the option that says which; RWKV-4 and 5 are published with true.
inline constexpr const char* kMixCurrent =
    "mix_* are the current token's shares instead of those of the token before, as in checkpoints of RWKV-4 "
    "and 5";

// Layer norm over each head of y [B, T, H, V] with weight and bias [H V]: a group norm of H groups. Returns
// [B, T, H V]. The last of these eps is that of RWKV-6 and 7.
at::Tensor head_norm(const at::Tensor& y, const at::Tensor& weight, const at::Tensor& bias, double eps);
inline constexpr double kRwkvNormEps = 64e-5;

// How far up a layer stands: `depth` from 0 (first) to 1 (last); `left` from 1 down to 1 / layers.
struct Height {
  double depth, left;
  explicit Height(const Site& site);
};

// Fills [D] by channel: f gets i / (D - 1), i = 0 .. D - 1, as a tensor.
Init init_ramp(std::function<at::Tensor(const at::Tensor& ramp)> f);
// Token shift weights mu = 1 - (i / D)^power - less; 1 - mu where `current`.
Init init_mix(double power, double less = 0, bool current = false);
// Rows or columns (the fewer) orthogonal, of length `gain` times sqrt(rows / columns) where there are more rows.
// Leading dimensions are matrices of their own.
Init init_orthogonal(double gain);

}  // namespace weft
