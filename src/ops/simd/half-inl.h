// Rows of bf16 and fp16 as fp32 and back, rounded to nearest even. Included once for each instruction set, after
// "ops/simd/targets.h". Highway 1.0 cuts bf16 off instead of rounding, and its fp16 without vectors knows neither
// rounding nor infinities; hence the arithmetic here.
#if defined(WEFT_OPS_SIMD_HALF_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_OPS_SIMD_HALF_INL_H_
#undef WEFT_OPS_SIMD_HALF_INL_H_
#else
#define WEFT_OPS_SIMD_HALF_INL_H_
#endif

#include <algorithm>
#include <bit>
#include <cstdint>

#include "hwy/highway.h"
#include "ops/simd/float_type.h"

HWY_BEFORE_NAMESPACE();
namespace weft::simd::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using HalfTag = hn::ScalableTag<float>;
using HalfBits = hn::Rebind<uint16_t, HalfTag>;

HWY_INLINE hn::Vec<HalfTag> widen_bf16(const uint16_t* from) {
  const hn::Rebind<uint32_t, HalfTag> du;
  return hn::BitCast(HalfTag(), hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(HalfBits(), from))));
}

HWY_INLINE void narrow_bf16(hn::Vec<HalfTag> x, uint16_t* to) {
  const hn::Rebind<uint32_t, HalfTag> du;
  const hn::Rebind<int32_t, HalfTag> di;
  const auto bits = hn::BitCast(du, x);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFF)));
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000));
  const auto kept = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(x)), quiet, rounded);
  hn::StoreU(hn::DemoteTo(HalfBits(), hn::BitCast(di, hn::ShiftRight<16>(kept))), HalfBits(), to);
}

#if HWY_TARGET == HWY_SCALAR

HWY_INLINE hn::Vec<HalfTag> widen_fp16(const uint16_t* from) {
  const uint32_t magnitude = *from & 0x7FFFu, sign = (*from & 0x8000u) << 16;
  const float value = std::bit_cast<float>(magnitude << 13) * 0x1p112f;
  const uint32_t bits =
      magnitude < 0x7C00u ? std::bit_cast<uint32_t>(value) : 0x7F800000u | (magnitude << 13);
  return hn::Set(HalfTag(), std::bit_cast<float>(bits | sign));
}

HWY_INLINE void narrow_fp16(hn::Vec<HalfTag> x, uint16_t* to) {
  const uint32_t all = std::bit_cast<uint32_t>(hn::GetLane(x)), sign = (all & 0x80000000u) >> 16;
  const uint32_t bits = all & 0x7FFFFFFFu;
  const float magnitude = std::bit_cast<float>(bits);
  uint32_t half;
  if (bits > 0x7F800000u)
    half = 0x7E00u;
  else if (magnitude >= 65520.0f)  // half of the last step above the largest number
    half = 0x7C00u;
  else if (magnitude < 0x1p-14f)  // subnormal: the last bit of 0.5 + x is worth 2^-24
    half = std::bit_cast<uint32_t>(magnitude + 0.5f) - std::bit_cast<uint32_t>(0.5f);
  else
    half = (bits + 0xFFFu + ((bits >> 13) & 1u) - (112u << 23)) >> 13;
  *to = static_cast<uint16_t>(half | sign);
}

#else

HWY_INLINE hn::Vec<HalfTag> widen_fp16(const uint16_t* from) {
  const hn::Rebind<hwy::float16_t, HalfTag> dh;
  return hn::PromoteTo(HalfTag(), hn::BitCast(dh, hn::LoadU(HalfBits(), from)));
}

HWY_INLINE void narrow_fp16(hn::Vec<HalfTag> x, uint16_t* to) {
  const hn::Rebind<hwy::float16_t, HalfTag> dh;
  hn::StoreU(hn::BitCast(HalfBits(), hn::DemoteTo(dh, x)), HalfBits(), to);
}

#endif

// Calls whole(i) for every vector of n numbers and part(i, left) for the rest.
template <class Whole, class Part>
HWY_INLINE void for_half_vectors(int64_t n, const Whole& whole, const Part& part) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(HalfTag()));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) whole(i);
  if (i < n) part(i, n - i);
}

template <bool kBf16>
inline void widen_half_row(const uint16_t* from, int64_t n, float* to) {
  const auto widen = [](const uint16_t* x) HWY_ATTR { return kBf16 ? widen_bf16(x) : widen_fp16(x); };
  for_half_vectors(
      n, [&](int64_t i) HWY_ATTR { hn::StoreU(widen(from + i), HalfTag(), to + i); },
      [&](int64_t i, int64_t left) HWY_ATTR {
        HWY_ALIGN uint16_t narrow[HWY_MAX_BYTES / sizeof(float)] = {};
        HWY_ALIGN float wide[HWY_MAX_BYTES / sizeof(float)];
        std::copy_n(from + i, left, narrow);
        hn::StoreU(widen(narrow), HalfTag(), wide);
        std::copy_n(wide, left, to + i);
      });
}

template <bool kBf16>
inline void narrow_half_row(const float* from, int64_t n, uint16_t* to) {
  const auto narrow = [](hn::Vec<HalfTag> x, uint16_t* at)
                          HWY_ATTR { kBf16 ? narrow_bf16(x, at) : narrow_fp16(x, at); };
  for_half_vectors(
      n, [&](int64_t i) HWY_ATTR { narrow(hn::LoadU(HalfTag(), from + i), to + i); },
      [&](int64_t i, int64_t left) HWY_ATTR {
        HWY_ALIGN float wide[HWY_MAX_BYTES / sizeof(float)] = {};
        HWY_ALIGN uint16_t half[HWY_MAX_BYTES / sizeof(float)];
        std::copy_n(from + i, left, wide);
        narrow(hn::LoadU(HalfTag(), wide), half);
        std::copy_n(half, left, to + i);
      });
}

// n numbers of bf16 or fp16 as fp32, and back.
inline void widen_row(FloatType type, const void* from, int64_t n, float* to) {
  const auto* bits = static_cast<const uint16_t*>(from);
  type == FloatType::bf16 ? widen_half_row<true>(bits, n, to) : widen_half_row<false>(bits, n, to);
}
inline void narrow_row(FloatType type, const float* from, int64_t n, void* to) {
  auto* bits = static_cast<uint16_t*>(to);
  type == FloatType::bf16 ? narrow_half_row<true>(from, n, bits) : narrow_half_row<false>(from, n, bits);
}

}  // namespace weft::simd::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
