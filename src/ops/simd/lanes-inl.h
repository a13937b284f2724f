// Vector pieces for kernels that go along a row of floats: partial loads and stores, exponential, sigmoid.
// Included by kernel_cpu.cc files after hwy/highway.h; compiled once for each instruction set.
#if defined(WEFT_OPS_SIMD_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_OPS_SIMD_LANES_INL_H_
#undef WEFT_OPS_SIMD_LANES_INL_H_
#else
#define WEFT_OPS_SIMD_LANES_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace weft::simd {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::ScalableTag<float>;
using VecF = hn::Vec<Floats>;

// The next min(left, lanes) floats; the other lanes are 0.
HWY_INLINE VecF load_part(Floats d, const float* from, int64_t left) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  return left >= lanes ? hn::LoadU(d, from)
                       : hn::MaskedLoad(hn::FirstN(d, static_cast<size_t>(left)), d, from);
}

// Writes min(left, lanes) floats.
HWY_INLINE void store_part(VecF x, Floats d, float* to, int64_t left) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  if (left >= lanes)
    hn::StoreU(x, d, to);
  else
    hn::BlendedStore(x, hn::FirstN(d, static_cast<size_t>(left)), d, to);
}

HWY_INLINE float sum_lanes(Floats d, VecF x) { return hn::GetLane(hn::SumOfLanes(d, x)); }
HWY_INLINE float max_lanes(Floats d, VecF x) { return hn::GetLane(hn::MaxOfLanes(d, x)); }

// e^x for x <= 104; 0 below -104 and for -inf. A NaN stays one, which Highway's Exp would turn into 0.
HWY_INLINE VecF exp_lanes(Floats d, VecF x) { return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(d, x)); }

// 1 / (1 + e^-x), from an exponent that is never positive.
HWY_INLINE VecF sigmoid_lanes(Floats d, VecF x) {
  const VecF one = hn::Set(d, 1.0f);
  const VecF t = exp_lanes(d, hn::Neg(hn::Abs(x)));
  return hn::Div(hn::IfThenElse(hn::Lt(x, hn::Zero(d)), t, one), hn::Add(one, t));
}

// Sums `rows` rows of `width` floats into `out`, first row first.
HWY_INLINE void sum_rows(const float* from, int64_t rows, int64_t width, float* out) {
  const Floats d;
  for (int64_t i = 0; i < width; i += static_cast<int64_t>(hn::Lanes(d))) {
    VecF sum = hn::Zero(d);
    for (int64_t row = 0; row < rows; ++row)
      sum = hn::Add(sum, load_part(d, from + row * width + i, width - i));
    store_part(sum, d, out + i, width - i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::simd
HWY_AFTER_NAMESPACE();

#endif
