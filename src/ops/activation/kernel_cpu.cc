#include "ops/activation/kernel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/activation/kernel_cpu.cc"
#include "ops/simd/targets.h"

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/simd/exp-inl.h"
#include "ops/simd/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace sv = simd::HWY_NAMESPACE;
using sv::Floats;
using sv::VecF;

void silu_mul_forward(const float* gate, const float* x, float* y, int64_t begin, int64_t end) {
  const Floats d;
  for (int64_t i = begin; i < end; i += static_cast<int64_t>(hn::Lanes(d))) {
    const VecF g = sv::load_part(d, gate + i, end - i);
    const VecF open = hn::Mul(g, sv::sigmoid(d, g));
    sv::store_part(hn::Mul(open, sv::load_part(d, x + i, end - i)), d, y + i, end - i);
  }
}

void silu_mul_backward(const float* gate, const float* x, const float* dy, float* dgate, float* dx,
                       int64_t begin, int64_t end) {
  const Floats d;
  const VecF one = hn::Set(d, 1.0f);
  for (int64_t i = begin; i < end; i += static_cast<int64_t>(hn::Lanes(d))) {
    const int64_t left = end - i;
    const VecF g = sv::load_part(d, gate + i, left), up = sv::load_part(d, dy + i, left);
    const VecF sigmoid = sv::sigmoid(d, g);
    const VecF slope = hn::Mul(sigmoid, hn::MulAdd(g, hn::Sub(one, sigmoid), one));
    sv::store_part(hn::Mul(up, hn::Mul(g, sigmoid)), d, dx + i, left);
    sv::store_part(hn::Mul(hn::Mul(up, slope), sv::load_part(d, x + i, left)), d, dgate + i, left);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(silu_mul_forward,
                   (const float* gate, const float* x, float* y, int64_t begin, int64_t end),
                   (gate, x, y, begin, end))
WEFT_SIMD_DISPATCH(silu_mul_backward,
                   (const float* gate, const float* x, const float* dy, float* dgate, float* dx,
                    int64_t begin, int64_t end),
                   (gate, x, dy, dgate, dx, begin, end))
}  // namespace weft::kernels
#endif
