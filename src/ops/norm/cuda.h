// The normalisations on CUDA kernels. Internal to the family.
#pragma once

#include "ops/norm/norm.h"

namespace weft::ops {

struct CudaNormKind {
  bool centre = false;
  bool sum = false;                    // divide by the root of the sum of squares, not of their mean
  bool before = false, after = false;  // where the gate goes
  double eps = 0;
};

// Whether the kernels run for x and take it with the other tensors, of which any may be undefined.
bool has_cuda_norm(const at::Tensor& x, const at::Tensor& other, const at::Tensor& weight,
                   const at::Tensor& bias);

// Of checked inputs.
at::Tensor cuda_norm(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& weight,
                     const at::Tensor& bias, const CudaNormKind& kind);
AddNormResult cuda_add_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                                double eps);

}  // namespace weft::ops
