// What weft is compared with: the usual forms of these ops in plain tensor operations, as a careful PyTorch
// user would write them without kernels of his own. Differentiable; they are timed, never used.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

namespace weft::bench::peers {

// Linear attention in chunks: batched products inside a chunk, a loop over chunks for the state, the delta
// rule through a triangular solve (Yang et al. 2024, arXiv:2406.06484). fp32 inside.
//   q, k [B, T, H, K], v [B, T, H, V], log_decay undefined | [B, T, H] | [B, T, H, K], beta undefined | [B,
//   T, H]
// Returns y [B, T, H, V]. With a vector decay, decays of a chunk must multiply to more than e^-80.
at::Tensor chunked_linear_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                    const at::Tensor& log_decay, const at::Tensor& beta, int64_t chunk);

// One token of the same with state S [B, H, K, V], which it overwrites.
at::Tensor linear_attention_step(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                 const at::Tensor& log_decay, const at::Tensor& beta, at::Tensor& state);

// h_t = a_t h_{t-1} + b_t along dimension 1 of [B, T, ...], by two loops of about sqrt(T) steps: all blocks
// at once, then from block to block.
at::Tensor two_level_scan(const at::Tensor& a, const at::Tensor& b);

// The arguments of ops::selective_scan; the decays of all states are laid out in memory, [B, T, E, N].
at::Tensor selective_scan(const at::Tensor& u, const at::Tensor& delta, const at::Tensor& a,
                          const at::Tensor& b, const at::Tensor& c, const at::Tensor& skip);

// u [B, T, E], kernel [E, L]: real FFTs of twice the length, as in the code of S4 and Hyena.
at::Tensor fft_conv(const at::Tensor& u, const at::Tensor& kernel);

// x [B, T, C], weight [C, W]: at::conv1d with one group a channel, then silu.
at::Tensor short_conv_silu(const at::Tensor& x, const at::Tensor& weight);
// One token x [B, 1, C]; moves state [B, W - 1, C] on.
at::Tensor short_conv_silu_step(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& state);

// x [B, T, H, K], cosine and sine [T, K / 2] from a table.
at::Tensor rope(const at::Tensor& x, const at::Tensor& cosine, const at::Tensor& sine);

}  // namespace weft::bench::peers
