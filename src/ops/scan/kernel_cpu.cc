// h_t = a_t h_{t-1} + b_t for real and complex numbers: a few vectors of channels stay in registers over all
// tokens.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/scan/kernel_cpu.cc"
#include "ops/simd/targets.h"
//
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/scan/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// Arithmetic on a vector of real numbers.
struct Real {
  static constexpr int64_t kParts = 1;  // floats a number
  V re;
  static HWY_INLINE Real zero() { return {hn::Zero(D())}; }
  static HWY_INLINE Real load(const float* p) { return {hn::LoadU(D(), p)}; }
  HWY_INLINE void store(float* p) const { hn::StoreU(re, D(), p); }
  HWY_INLINE Real operator+(const Real& y) const { return {hn::Add(re, y.re)}; }
  HWY_INLINE Real times_plus(const Real& y, const Real& z) const { return {hn::MulAdd(re, y.re, z.re)}; }
  HWY_INLINE Real conj_times(const Real& y) const { return {hn::Mul(re, y.re)}; }
};

// Arithmetic on a vector of complex numbers, interleaved in memory.
struct Complex {
  static constexpr int64_t kParts = 2;
  V re, im;
  static HWY_INLINE Complex zero() { return {hn::Zero(D()), hn::Zero(D())}; }
  static HWY_INLINE Complex load(const float* p) {
    Complex x;
    hn::LoadInterleaved2(D(), p, x.re, x.im);
    return x;
  }
  HWY_INLINE void store(float* p) const { hn::StoreInterleaved2(re, im, D(), p); }
  HWY_INLINE Complex operator+(const Complex& y) const { return {hn::Add(re, y.re), hn::Add(im, y.im)}; }
  HWY_INLINE Complex times_plus(const Complex& y, const Complex& z) const {
    return {hn::MulAdd(re, y.re, hn::NegMulAdd(im, y.im, z.re)),
            hn::MulAdd(re, y.im, hn::MulAdd(im, y.re, z.im))};
  }
  HWY_INLINE Complex conj_times(const Complex& y) const {
    return {hn::MulAdd(re, y.re, hn::Mul(im, y.im)), hn::MulSub(re, y.im, hn::Mul(im, y.re))};
  }
};

// K whole vectors of channels; or the first `valid` lanes of one, when Tail.
template <class X, int K, bool Tail>
struct Span {
  int64_t valid = 0;
  HWY_INLINE X load(const float* p, int k) const {
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(D()));
    if constexpr (!Tail) return X::load(p + k * lanes * X::kParts);
    HWY_ALIGN float padded[2 * HWY_MAX_BYTES / sizeof(float)] = {};
    for (int64_t i = 0; i < valid * X::kParts; ++i) padded[i] = p[i];
    return X::load(padded);
  }
  HWY_INLINE void store(const X& x, float* p, int k) const {
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(D()));
    if constexpr (!Tail) return x.store(p + k * lanes * X::kParts);
    HWY_ALIGN float padded[2 * HWY_MAX_BYTES / sizeof(float)];
    x.store(padded);
    for (int64_t i = 0; i < valid * X::kParts; ++i) p[i] = padded[i];
  }
};

template <class X, int K, bool Tail>
void forward_span(const ScanProblem& p, const Span<X, K, Tail> span, int64_t batch, int64_t channel) {
  const int64_t row = p.channels * X::kParts, offset = channel * X::kParts;
  X h[K], a[K];
  for (int k = 0; k < K; ++k) {
    h[k] = p.initial ? span.load(p.initial + batch * row + offset, k) : X::zero();
    a[k] = p.constant ? span.load(p.a + offset, k) : X::zero();
  }
  for (int64_t t = 0; t < p.tokens; ++t) {
    const int64_t at = (batch * p.tokens + t) * row + offset;
    const bool start = p.starts && p.starts[batch * p.tokens + t];
    for (int k = 0; k < K; ++k) {
      if (!p.constant) a[k] = span.load(p.a + at, k);
      const X b = span.load(p.b + at, k);
      h[k] = start ? b : a[k].times_plus(h[k], b);
      span.store(h[k], p.h + at, k);
    }
  }
  for (int k = 0; k < K; ++k) span.store(h[k], p.state + batch * row + offset, k);
}

template <class X, int K, bool Tail>
void backward_span(const ScanGradient& g, const Span<X, K, Tail> span, int64_t batch, int64_t channel) {
  const ScanProblem& p = g.forward;
  const int64_t row = p.channels * X::kParts, offset = channel * X::kParts, first = batch * row + offset;
  X dh[K], a[K], da[K];
  for (int k = 0; k < K; ++k) {
    dh[k] = span.load(g.dstate + first, k);
    a[k] = p.constant ? span.load(p.a + offset, k) : X::zero();
    da[k] = X::zero();
  }
  for (int64_t t = p.tokens - 1; t >= 0; --t) {
    const int64_t at = (batch * p.tokens + t) * row + offset;
    const bool start = p.starts && p.starts[batch * p.tokens + t];
    const float* const before = start       ? nullptr
                                : t         ? p.h + at - row
                                : p.initial ? p.initial + first
                                            : nullptr;
    for (int k = 0; k < K; ++k) {
      dh[k] = dh[k] + span.load(g.dh + at, k);
      span.store(dh[k], g.db + at, k);
      if (g.da) {
        const X here = before ? span.load(before, k).conj_times(dh[k]) : X::zero();
        if (p.constant)
          da[k] = da[k] + here;
        else
          span.store(here, g.da + at, k);
      }
      if (!p.constant) a[k] = span.load(p.a + at, k);
      dh[k] = start ? X::zero() : a[k].conj_times(dh[k]);
    }
  }
  for (int k = 0; k < K; ++k) {
    if (g.da && p.constant) span.store(da[k], g.da + first, k);
    if (g.dinitial) span.store(dh[k], g.dinitial + first, k);
  }
}

// Calls `pass` on the channels of each task in spans of four vectors, one vector, and what is left.
template <class X, class Pass>
void for_each_span(const ScanProblem& p, int64_t begin, int64_t end, const Pass& pass) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(D())), blocks = scan_tasks(p.channels);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t batch = task / blocks;
    int64_t channel = task % blocks * kScanBlock;
    const int64_t stop = channel + kScanBlock < p.channels ? channel + kScanBlock : p.channels;
    for (; channel + 4 * lanes <= stop; channel += 4 * lanes) pass(Span<X, 4, false>{}, batch, channel);
    for (; channel + lanes <= stop; channel += lanes) pass(Span<X, 1, false>{}, batch, channel);
    if (channel < stop) pass(Span<X, 1, true>{stop - channel}, batch, channel);
  }
}

struct Forward {
  const ScanProblem& p;
  template <class S>
  void operator()(const S& span, int64_t batch, int64_t channel) const {
    forward_span(p, span, batch, channel);
  }
};

struct Backward {
  const ScanGradient& p;
  template <class S>
  void operator()(const S& span, int64_t batch, int64_t channel) const {
    backward_span(p, span, batch, channel);
  }
};

void scan_forward(const ScanProblem& p, int64_t begin, int64_t end) {
  if (p.kind == ScanKind::complex)
    for_each_span<Complex>(p, begin, end, Forward{p});
  else
    for_each_span<Real>(p, begin, end, Forward{p});
}

void scan_backward(const ScanGradient& p, int64_t begin, int64_t end) {
  if (p.forward.kind == ScanKind::complex)
    for_each_span<Complex>(p.forward, begin, end, Backward{p});
  else
    for_each_span<Real>(p.forward, begin, end, Backward{p});
}

}  // namespace
}  // namespace weft::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(scan_forward, (const ScanProblem& p, int64_t begin, int64_t end), (p, begin, end))
WEFT_SIMD_DISPATCH(scan_backward, (const ScanGradient& p, int64_t begin, int64_t end), (p, begin, end))
}  // namespace weft::kernels
#endif
