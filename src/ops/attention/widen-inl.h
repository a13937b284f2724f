// Keys and values of 32, 16 and 8 bits as floats.
#if defined(WEFT_OPS_ATTENTION_WIDEN_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_OPS_ATTENTION_WIDEN_INL_H_
#undef WEFT_OPS_ATTENTION_WIDEN_INL_H_
#else
#define WEFT_OPS_ATTENTION_WIDEN_INL_H_
#endif

#include <algorithm>

#include "hwy/highway.h"
#include "ops/attention/kernel.h"
#include "ops/simd/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {

// The next lanes of a row of each type; scales are applied by the caller.
HWY_INLINE simd::HWY_NAMESPACE::VecF load_wide(const float* from) {
  return hwy::HWY_NAMESPACE::LoadU(simd::HWY_NAMESPACE::Floats(), from);
}

template <class T>
HWY_INLINE simd::HWY_NAMESPACE::VecF load_wide(const T* from) {
  namespace hn = hwy::HWY_NAMESPACE;
  const simd::HWY_NAMESPACE::Floats d;
  const hn::Rebind<T, simd::HWY_NAMESPACE::Floats> narrow;
  if constexpr (sizeof(T) == 1) {
    const hn::Rebind<int32_t, simd::HWY_NAMESPACE::Floats> di;
    return hn::ConvertTo(d, hn::PromoteTo(di, hn::LoadU(narrow, from)));
  } else {
    return hn::PromoteTo(d, hn::LoadU(narrow, from));
  }
}

// The first `left` lanes exist, the others are 0.
template <class T>
HWY_INLINE simd::HWY_NAMESPACE::VecF load_wide_part(const T* from, int64_t left) {
  const auto lanes = static_cast<int64_t>(hwy::HWY_NAMESPACE::Lanes(simd::HWY_NAMESPACE::Floats()));
  if (left >= lanes) return load_wide(from);
  T padded[HWY_MAX_BYTES / sizeof(float)] = {};
  std::copy_n(from, left, padded);
  return load_wide(padded);
}

// Calls use(pointer) with the typed address of channel 0 of a key.
template <class Use>
HWY_INLINE void with_row(const KeyRows& x, int64_t batch, int64_t head, int64_t key, const Use& use) {
  const int64_t at = batch * x.batch + key * x.token + head * x.head;
  switch (x.type) {
    case Element::fp32:
      return use(static_cast<const float*>(x.data) + at);
    case Element::bf16:
      return use(static_cast<const hwy::bfloat16_t*>(x.data) + at);
    case Element::fp16:
      return use(static_cast<const hwy::float16_t*>(x.data) + at);
    case Element::int8:
      return use(static_cast<const int8_t*>(x.data) + at);
  }
}

HWY_INLINE const float* scales_of(const KeyRows& x, int64_t batch, int64_t head, int64_t key) {
  return x.scale + batch * x.scale_batch + key * x.scale_token + head * x.scale_head;
}

// to[c] = channel first + c of a key, `count` of them.
inline void widen_row(const KeyRows& x, int64_t batch, int64_t head, int64_t key, int64_t first,
                      int64_t count, float* to) {
  namespace sv = simd::HWY_NAMESPACE;
  const sv::Floats d;
  const auto lanes = static_cast<int64_t>(hwy::HWY_NAMESPACE::Lanes(d));
  with_row(x, batch, head, key, [&](const auto* row) HWY_ATTR {
    for (int64_t c = 0; c < count; c += lanes)
      sv::store_part(load_wide_part(row + first + c, count - c), d, to + c, count - c);
  });
  if (x.type != Element::int8) return;
  const float* scale = scales_of(x, batch, head, key);
  for (int64_t c = 0; c < count;) {
    const int64_t run = (first + c) / x.group, end = std::min(count, (run + 1) * x.group - first);
    const auto factor = hwy::HWY_NAMESPACE::Set(d, scale[run]);
    for (; c < end; c += std::min(lanes, end - c))
      sv::store_part(hwy::HWY_NAMESPACE::Mul(factor, sv::load_part(d, to + c, end - c)), d, to + c, end - c);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#endif
