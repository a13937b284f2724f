// Linear time-invariant state-space models with one input and one output a channel, as long convolutions:
//   h_t = A h_{t-1} + b u_t,   y_t = Re(c . h_t)      so that      y = K * u,   K[l] = Re(c . A^l b)
// Diagonal A: S4D (Gu et al. 2022, arXiv:2206.11893), DSS (arXiv:2203.14343), EMA (Ma et al. 2022, arXiv:2209.10655).
// Dense or diagonal plus low rank A: S4 (Gu et al. 2022, arXiv:2111.00396).
// Powers of A are formed in fp64 for two levels of about sqrt(T) lags each, l = j C + i, and multiplied as matrices:
// no tensor of size T N is made, forward or backward. README.md has the derivation.
//
// B batch, T tokens, E channels, N states of a channel, L taps, R rank.
#pragma once

#include <ATen/core/Tensor.h>

namespace weft::ops {

// Sums of exponentials, the product with a Vandermonde matrix: [B, E, L], result[.., l] = Re sum_n w[.., n] a[n]^l.
//   a  [E, N] real or complex          w  [B, E, N] likewise; its real type is that of the result
// Differentiable in both. Error relative to max|result|: fp32 1e-5 for |a| <= 1, L <= 2^20. Work 4 B E N L flops,
// memory (2 + B) E N sqrt(L) numbers.
at::Tensor exponential_sum(const at::Tensor& a, const at::Tensor& w, int64_t length);

// The transposed product: [B, E, N], result[.., n] = sum_t a[n]^(T - 1 - t) u[.., t, ..]; what T inputs leave in the
// states. u [B, T, E] fp32 or fp64; complex when a is. Differentiable in both.
at::Tensor exponential_moments(const at::Tensor& a, const at::Tensor& u);

struct LtiResult {
  at::Tensor y;      // [B, T, E] fp32, or fp64 for fp64 inputs
  at::Tensor state;  // [B, E, N] after the last token; undefined without keep_state
};

struct DiagonalSsm {
  at::Tensor u;             // [B, T, E] any float type
  at::Tensor a;             // [E, N] real or complex, best given in fp64: its powers are fp64
  at::Tensor b, c;          // [E, N] likewise; c holds the factor 2 where one of each conjugate pair is kept
  at::Tensor initial = {};  // [B, E, N]; undefined: zeros
  at::Tensor starts = {};   // [B, T] bool, true where a document begins; undefined: none
  bool keep_state = true;
};
// Differentiable in u, a, b, c, initial. T may be 0. Error against fp64 relative to max|y|: fp32 1e-5.
LtiResult diagonal_ssm(const DiagonalSsm& in);

struct DenseSsm {
  at::Tensor u;             // [B, T, E] any float type
  at::Tensor a;             // [E, N, N] real, spectral radius <= 1
  at::Tensor b, c;          // [E, N] real
  at::Tensor initial = {};  // [B, E, N] real; undefined: zeros
  at::Tensor starts = {};   // [B, T] bool; undefined: none
  at::Tensor kernel = {};   // [E, >= T] K when it is known already; undefined: formed from powers of a
  bool keep_state = true;
};
// As diagonal_ssm, besides E N^3 log T flops for the powers.
LtiResult dense_ssm(const DenseSsm& in);
// K [E, L] of a [E, N, N], b and c [E, N]; in the type of c.
at::Tensor dense_kernel(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c, int64_t length);
// v a^length for row vectors v [E, N], in fp64.
at::Tensor times_power(const at::Tensor& v, const at::Tensor& a, int64_t length);

// A continuous system x' = (diag(lambda) - P P*) x + b u, y = 2 Re(c . x) with one of each conjugate pair.
struct Dplr {
  at::Tensor lambda;  // [E, N / 2] complex, Re < 0
  at::Tensor p;       // [E, R, N / 2] complex
  at::Tensor b;       // [E, N / 2] complex
  at::Tensor dt;      // [E] step size
};
// The same in real coordinates x = (Re, Im) under the bilinear rule: a [E, N, N], b [E, N], fp64.
struct DenseSystem {
  at::Tensor a, b;
};
DenseSystem dplr_bilinear(const Dplr& system);
// The kernel K [E, L] of the bilinear rule by its generating function at the roots of unity: a Cauchy sum with
// the Woodbury identity for P. `c` [E, N / 2] complex is the output map times (I - A^L), A the discrete matrix; L even.
// In the real type of c. Frequencies are taken a few at a time, forward and backward: memory E (L + 8192 N) numbers.
// Differentiable in all tensors. Error relative to max|K|: fp32 1e-4.
at::Tensor dplr_kernel(const Dplr& system, const at::Tensor& c, int64_t length);

}  // namespace weft::ops
