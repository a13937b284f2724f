#include "ops/norm/norm.h"
#include "ops/shape.h"

namespace weft::ops::reference {
namespace {

at::Tensor scaled(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias) {
  at::Tensor y = weight.defined() ? x * weight.to(x.scalar_type()) : x;
  return bias.defined() ? y + bias.to(x.scalar_type()) : y;
}

at::Tensor unit_rms(const at::Tensor& x, double eps) {
  return x * at::rsqrt(x.square().mean(-1, true) + eps);
}

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return scaled(unit_rms(x.to(accumulate_type(x)), eps), weight, {}).to(x.scalar_type());
}

AddNormResult add_rms_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                           double eps) {
  const auto sum = x + residual;
  return {sum, rms_norm(sum, weight, eps)};
}

at::Tensor gated_rms_norm(const at::Tensor& x, const at::Tensor& gate, const at::Tensor& weight, double eps,
                          bool norm_before_gate) {
  const auto wide = x.to(accumulate_type(x));
  const auto open = at::silu(gate.to(accumulate_type(x)));
  const auto y = norm_before_gate ? scaled(unit_rms(wide, eps), weight, {}) * open
                                  : scaled(unit_rms(wide * open, eps), weight, {});
  return y.to(x.scalar_type());
}

at::Tensor layer_norm(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, double eps) {
  const auto wide = x.to(accumulate_type(x));
  const auto centred = wide - wide.mean(-1, true);
  return scaled(unit_rms(centred, eps), weight, bias).to(x.scalar_type());
}

at::Tensor l2_norm(const at::Tensor& x, double eps) {
  const auto wide = x.to(accumulate_type(x));
  return (wide * at::rsqrt(wide.square().sum(-1, true) + eps)).to(x.scalar_type());
}

}  // namespace weft::ops::reference
