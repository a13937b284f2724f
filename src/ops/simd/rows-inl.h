// Elementwise work and sums over one row of fp32. The plain loops are vectorised by the compiler, which
// cannot reorder sums or call a vector exponential; those two are written out. Included by kernel files for
// each instruction set.
#if defined(WEFT_OPS_SIMD_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_OPS_SIMD_ROWS_INL_H_
#undef WEFT_OPS_SIMD_ROWS_INL_H_
#else
#define WEFT_OPS_SIMD_ROWS_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace weft::simd {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// sum_i a[i] b[i]
inline float dot(int64_t n, const float* a, const float* b) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = hn::Lanes(d);
  auto sum = hn::Zero(d);
  for (int64_t i = 0; i < n; i += lanes) {
    const auto mask = hn::FirstN(d, static_cast<size_t>(n - i));
    sum = hn::MulAdd(hn::MaskedLoad(mask, d, a + i), hn::MaskedLoad(mask, d, b + i), sum);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// sum_i a[i]
inline float sum_row(int64_t n, const float* a) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = hn::Lanes(d);
  auto sum = hn::Zero(d);
  for (int64_t i = 0; i < n; i += lanes)
    sum = hn::Add(sum, hn::MaskedLoad(hn::FirstN(d, static_cast<size_t>(n - i)), d, a + i));
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// to[i] = exp(from[i]); exact to a few units in the last place, 0 for minus infinity. May run in place.
inline void exp_row(int64_t n, const float* from, float* to) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = hn::Lanes(d);
  for (int64_t i = 0; i < n; i += lanes) {
    const auto mask = hn::FirstN(d, static_cast<size_t>(n - i));
    hn::BlendedStore(hn::Exp(d, hn::MaskedLoad(mask, d, from + i)), mask, d, to + i);
  }
}

inline void fill_row(int64_t n, float value, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = value;
}

// to = a * from
inline void scale_row(int64_t n, float a, const float* from, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = a * from[i];
}

// to += a * from
inline void add_row(int64_t n, float a, const float* HWY_RESTRICT from, float* HWY_RESTRICT to) {
  for (int64_t i = 0; i < n; ++i) to[i] += a * from[i];
}

// to = a * b elementwise
inline void multiply_row(int64_t n, const float* a, const float* b, float* HWY_RESTRICT to) {
  for (int64_t i = 0; i < n; ++i) to[i] = a[i] * b[i];
}

// to *= a elementwise
inline void multiply_row_in_place(int64_t n, const float* HWY_RESTRICT a, float* HWY_RESTRICT to) {
  for (int64_t i = 0; i < n; ++i) to[i] *= a[i];
}

// to += a * b elementwise
inline void multiply_add_row(int64_t n, const float* a, const float* b, float* HWY_RESTRICT to) {
  for (int64_t i = 0; i < n; ++i) to[i] += a[i] * b[i];
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::simd
HWY_AFTER_NAMESPACE();

#endif  // WEFT_OPS_SIMD_ROWS_INL_H_
