// Rotary position embedding. Su et al. 2021, arXiv:2104.09864.
#pragma once

#include <ATen/core/Tensor.h>

namespace weft::ops {

struct Rope {
  int64_t dim = 0;           // the first `dim` channels of a head are rotated; 0 means all; even
  double theta = 10000.0;    // channel pair i turns by position * theta^(-2 i / dim)
  bool interleaved = false;  // pairs are (2i, 2i + 1); else (i, i + dim / 2)
  // fp64, [dim / 2] or [B, T, dim / 2]: radians a position of each pair, in place of theta; undefined: theta's.
  at::Tensor frequencies = {};
  double magnitude = 1.0;  // multiplies the rotated channels (the cosines and sines)
};

// x [B, T, H, K], positions [B, T] int64. Angles in fp32 at least (fp64 for fp64). Differentiable in x.
// Error against fp64 relative to max|y| for positions below 2^20: fp32 1e-5 (angles are reduced in fp64),
// bf16 1e-2.
at::Tensor rope(const at::Tensor& x, const at::Tensor& positions, const Rope& options);

namespace reference {
at::Tensor rope(const at::Tensor& x, const at::Tensor& positions, const Rope& options);
}

}  // namespace weft::ops
