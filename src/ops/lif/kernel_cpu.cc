// The reset makes the recurrence nonlinear, so time is serial; channels go side by side in lanes.
#include "ops/lif/kernel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/lif/kernel_cpu.cc"
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

void lif_forward(const LifProblem& p, int64_t begin, int64_t end) {
  const Floats d;
  const VecF leak = hn::Set(d, p.leak), threshold = hn::Set(d, p.threshold), one = hn::Set(d, 1.0f);
  for (int64_t row = begin; row < end; ++row)
    for (int64_t e = 0; e < p.channels; e += static_cast<int64_t>(hn::Lanes(d))) {
      const int64_t left = p.channels - e;
      VecF v = sv::load_part(d, p.initial + row * p.channels + e, left);
      for (int64_t t = 0; t < p.tokens; ++t) {
        const int64_t token = row * p.tokens + t, at = token * p.channels + e;
        if (p.starts && p.starts[token]) v = hn::Zero(d);
        const VecF charged = hn::Add(v, hn::Mul(hn::Sub(sv::load_part(d, p.x + at, left), v), leak));
        const auto fires = hn::Ge(charged, threshold);
        if (p.charged) sv::store_part(charged, d, p.charged + at, left);
        sv::store_part(hn::IfThenElseZero(fires, one), d, p.spikes + at, left);
        v = hn::IfThenZeroElse(fires, charged);
      }
      sv::store_part(v, d, p.state + row * p.channels + e, left);
    }
}

void lif_backward(const LifProblem& p, const LifGradient& g, int64_t begin, int64_t end) {
  const Floats d;
  const VecF leak = hn::Set(d, p.leak), keep = hn::Set(d, 1 - p.leak), one = hn::Set(d, 1.0f);
  const VecF threshold = hn::Set(d, p.threshold), alpha = hn::Set(d, p.alpha);
  for (int64_t row = begin; row < end; ++row)
    for (int64_t e = 0; e < p.channels; e += static_cast<int64_t>(hn::Lanes(d))) {
      const int64_t left = p.channels - e;
      VecF dv = sv::load_part(d, g.dstate + row * p.channels + e, left);  // of v_t, after the reset
      for (int64_t t = p.tokens - 1; t >= 0; --t) {
        const int64_t token = row * p.tokens + t, at = token * p.channels + e;
        const VecF charged = sv::load_part(d, g.charged + at, left);
        const VecF s = sv::sigmoid(d, hn::Mul(alpha, hn::Sub(charged, threshold)));
        const VecF slope = hn::Mul(alpha, hn::Mul(s, hn::Sub(one, s)));
        const VecF through = hn::IfThenZeroElse(hn::Ge(charged, threshold), dv);
        const VecF dcharged = hn::MulAdd(sv::load_part(d, g.dspikes + at, left), slope, through);
        sv::store_part(hn::Mul(dcharged, leak), d, g.dx + at, left);
        dv = p.starts && p.starts[token] ? hn::Zero(d) : hn::Mul(dcharged, keep);
      }
      sv::store_part(dv, d, g.dinitial + row * p.channels + e, left);
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(lif_forward, (const LifProblem& p, int64_t begin, int64_t end), (p, begin, end))
WEFT_SIMD_DISPATCH(lif_backward, (const LifProblem& p, const LifGradient& g, int64_t begin, int64_t end),
                   (p, g, begin, end))
}  // namespace weft::kernels
#endif
