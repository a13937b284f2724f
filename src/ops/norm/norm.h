// Normalisations over the last dimension, computed in fp32 (fp64 for fp64). Differentiable in every tensor;
// second derivatives only by the reference (WEFT_KERNEL=reference).
#pragma once

#include <ATen/core/Tensor.h>

namespace weft::ops {

// x / sqrt(mean(x^2) + eps) * weight; weight [D] may be undefined. Zhang and Sennrich 2019, arXiv:1910.07467.
// Type of x. Error against fp64 relative to max|y|: fp32 1e-5, bf16 and fp16 1e-2.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);

struct AddNormResult {
  at::Tensor sum;  // x + residual in the wider of their types: the residual stream
  at::Tensor y;    // rms_norm(sum), in the type of sum
};

// The end of one residual branch and the start of the next in one pass over memory. x and residual have one
// shape. Bounds as rms_norm.
AddNormResult add_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                           double eps);

// norm_before_gate: rms_norm(x) * silu(gate), as in Gated DeltaNet; else rms_norm(x * silu(gate)), as in
// Mamba-2.
at::Tensor gated_rms_norm(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& weight, double eps,
                          bool norm_before_gate);

// (x - mean) / sqrt(var + eps) * weight + bias; weight and bias [D] may be undefined. Ba et al. 2016,
// arXiv:1607.06450.
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps);

// x / sqrt(sum(x^2) + eps): rows of unit length, as for the q and k of the delta rule.
at::Tensor l2_norm(const at::Tensor& x, double eps);

namespace reference {
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps);
AddNormResult add_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                           double eps);
at::Tensor gated_rms_norm(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& weight, double eps,
                          bool norm_before_gate);
at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps);
at::Tensor l2_norm(const at::Tensor& x, double eps);
}  // namespace reference

}  // namespace weft::ops
