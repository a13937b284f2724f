// Exponentials for the CPU kernels: exp2, exp, sigmoid, tanh on fp32 vectors of any length. Included once for
// each instruction set, after "ops/simd/targets.h".
#if defined(WEFT_OPS_SIMD_EXP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_OPS_SIMD_EXP_INL_H_
#undef WEFT_OPS_SIMD_EXP_INL_H_
#else
#define WEFT_OPS_SIMD_EXP_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace weft::simd::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// (2^r - 1) / r for |r| <= 1/2: interpolated in the Chebyshev nodes, 2^r has a relative error of 5e-9 before
// rounding.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_quotient(D d, V r) {
  V q = hn::MulAdd(hn::Set(d, 1.5453163e-4f), r, hn::Set(d, 1.33908634e-3f));
  q = hn::MulAdd(q, r, hn::Set(d, 9.61808256e-3f));
  q = hn::MulAdd(q, r, hn::Set(d, 5.55035711e-2f));
  q = hn::MulAdd(q, r, hn::Set(d, 2.40226508e-1f));
  return hn::MulAdd(q, r, hn::Set(d, 6.93147188e-1f));
}

// p 2^n for p in [0.7, 1.42] and n in [-125, 126], by adding to the exponent bits.
template <class D, class V = hn::Vec<D>, class VI>
HWY_INLINE V scale_by_power(D d, V p, VI n) {
  const hn::RebindToSigned<D> di;
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(n)));
}

// 2^x, relative error about 1e-7. Saturates at 2^-125 and 2^126; NaN stays NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2(D d, V x) {
  x = hn::Min(hn::Set(d, 126.0f), hn::Max(hn::Set(d, -125.0f), x));
  // Adding this rounds x to an integer n and leaves n in the last 9 bits; cheaper than a checked conversion.
  const V shift = hn::Set(d, 0x1.8p23f), shifted = hn::Add(x, shift);
  const V r = hn::Sub(x, hn::Sub(shifted, shift));
  const hn::RebindToSigned<D> di;
  return scale_by_power(d, hn::MulAdd(r, exp2_quotient(d, r), hn::Set(d, 1.0f)), hn::BitCast(di, shifted));
}

// 2^x for x <= 0, relative error about 1.5e-7, less near 0, where products of many are taken; 2^-125 below -125, NaN
// stays NaN. Adding 1.5 2^23 rounds x to an integer, which then stands in the lowest bits.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp2_falling(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V magic = hn::Set(d, 12582912.0f);
  x = hn::Max(hn::Set(d, -125.0f), x);
  const V shifted = hn::Add(x, magic);
  const V r = hn::Sub(x, hn::Sub(shifted, magic));
  // (2^r - 1) / r for |r| <= 1/2, the largest relative error of 1 + r q(r) at its least: 9.1e-8.
  V q = hn::MulAdd(hn::Set(d, 1.32647256e-3f), r, hn::Set(d, 9.67151274e-3f));
  q = hn::MulAdd(q, r, hn::Set(d, 5.55073375e-2f));
  q = hn::MulAdd(q, r, hn::Set(d, 2.40222421e-1f));
  q = hn::MulAdd(q, r, hn::Set(d, 6.93146978e-1f));
  const V p = hn::MulAdd(r, q, hn::Set(d, 1.0f));
  return hn::BitCast(d, hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(hn::BitCast(di, shifted))));
}

// x = n ln 2 + r ln 2 with |r| <= 1/2. ln 2 in two parts, so that n times the first is exact.
template <class D, class V = hn::Vec<D>, class VI>
HWY_INLINE V exp_remainder(D d, V x, VI& n) {
  n = hn::NearestInt(hn::Mul(x, hn::Set(d, 1.44269504f)));
  const V whole = hn::ConvertTo(d, n);
  const V rest =
      hn::NegMulAdd(whole, hn::Set(d, -2.12194440e-4f), hn::NegMulAdd(whole, hn::Set(d, 0.693359375f), x));
  return hn::Mul(rest, hn::Set(d, 1.44269504f));
}

// e^x, relative error about 1.5e-7. Saturates at e^-86 and e^87; NaN stays NaN.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp(D d, V x) {
  x = hn::Min(hn::Set(d, 87.0f), hn::Max(hn::Set(d, -86.0f), x));
  hn::Vec<hn::RebindToSigned<D>> n;
  const V r = exp_remainder(d, x, n);
  return scale_by_power(d, hn::MulAdd(r, exp2_quotient(d, r), hn::Set(d, 1.0f)), n);
}

// 1 / (1 + e^-x)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V sigmoid(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  return hn::Div(one, hn::Add(one, exp(d, hn::Neg(x))));
}

// (e^2x - 1) / (e^2x + 1), where e^2x - 1 = 2^n (2^r - 1) + (2^n - 1) keeps its digits near 0.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V tanh(D d, V x) {
  x = hn::Min(hn::Set(d, 20.0f), hn::Max(hn::Set(d, -20.0f), hn::Add(x, x)));
  hn::Vec<hn::RebindToSigned<D>> n;
  const V r = exp_remainder(d, x, n);
  const V one = hn::Set(d, 1.0f), power = scale_by_power(d, one, n);
  const V grown = hn::MulAdd(hn::Mul(r, exp2_quotient(d, r)), power, hn::Sub(power, one));
  return hn::Div(grown, hn::Add(grown, hn::Set(d, 2.0f)));
}

}  // namespace weft::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
