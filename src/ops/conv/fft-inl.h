// FFTs of many channels at once: element j of a buffer is a vector of real and one of imaginary parts. Forward with
// decimation in frequency, inverse with decimation in time, so that neither has to reorder: spectra stay in the order
// that the passes leave (fft_tables.cc). Depth first, so that parts that fit in a cache are finished in it.
#if defined(WEFT_OPS_CONV_FFT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_OPS_CONV_FFT_INL_H_
#undef WEFT_OPS_CONV_FFT_INL_H_
#else
#define WEFT_OPS_CONV_FFT_INL_H_
#endif

#include "hwy/highway.h"
#include "ops/conv/fft_kernel.h"
#include "ops/simd/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace sv = simd::HWY_NAMESPACE;
using sv::Floats;
using sv::VecF;

struct Complex {
  VecF re, im;
};

HWY_INLINE Complex operator+(const Complex& a, const Complex& b) {
  return {hn::Add(a.re, b.re), hn::Add(a.im, b.im)};
}
HWY_INLINE Complex operator-(const Complex& a, const Complex& b) {
  return {hn::Sub(a.re, b.re), hn::Sub(a.im, b.im)};
}
HWY_INLINE Complex conjugate(const Complex& a) { return {a.re, hn::Neg(a.im)}; }
HWY_INLINE Complex times_i(const Complex& a) { return {hn::Neg(a.im), a.re}; }
HWY_INLINE Complex times(const Complex& a, const Complex& b) {
  return {hn::NegMulAdd(a.im, b.im, hn::Mul(a.re, b.re)), hn::MulAdd(a.re, b.im, hn::Mul(a.im, b.re))};
}
// conj(a) b
HWY_INLINE Complex conjugate_times(const Complex& a, const Complex& b) {
  return {hn::MulAdd(a.im, b.im, hn::Mul(a.re, b.re)), hn::NegMulAdd(a.im, b.re, hn::Mul(a.re, b.im))};
}
HWY_INLINE Complex scaled(const Complex& a, float s) {
  const VecF f = hn::Set(Floats(), s);
  return {hn::Mul(a.re, f), hn::Mul(a.im, f)};
}
HWY_INLINE Complex constant(const float* w) { return {hn::Set(Floats(), w[0]), hn::Set(Floats(), w[1])}; }

HWY_INLINE int64_t lanes() { return static_cast<int64_t>(hn::Lanes(Floats())); }
HWY_INLINE Complex load(const float* x, int64_t j) {
  const float* at = x + 2 * j * lanes();
  return {hn::LoadU(Floats(), at), hn::LoadU(Floats(), at + lanes())};
}
HWY_INLINE void store(const Complex& c, float* x, int64_t j) {
  float* at = x + 2 * j * lanes();
  hn::StoreU(c.re, Floats(), at);
  hn::StoreU(c.im, Floats(), at + lanes());
}

// One pass of four over n elements: twiddles of j, 2 j, 3 j in `w`.
HWY_INLINE void forward_pass(float* x, int64_t n, const float* w) {
  const int64_t q = n / 4;
  for (int64_t j = 0; j < q; ++j, w += 6) {
    const Complex a = load(x, j), b = load(x, j + q), c = load(x, j + 2 * q), d = load(x, j + 3 * q);
    const Complex even = a + c, odd = b + d, left = a - c, right = times_i(b - d);
    store(even + odd, x, j);
    store(times(left - right, constant(w)), x, j + q);
    store(times(even - odd, constant(w + 2)), x, j + 2 * q);
    store(times(left + right, constant(w + 4)), x, j + 3 * q);
  }
}

HWY_INLINE void inverse_pass(float* x, int64_t n, const float* w) {
  const int64_t q = n / 4;
  for (int64_t j = 0; j < q; ++j, w += 6) {
    const Complex a = load(x, j), b = conjugate_times(constant(w), load(x, j + q)),
                  c = conjugate_times(constant(w + 2), load(x, j + 2 * q)),
                  d = conjugate_times(constant(w + 4), load(x, j + 3 * q));
    const Complex even = a + c, odd = b + d, left = a - c, right = times_i(b - d);
    store(even + odd, x, j);
    store(left + right, x, j + q);
    store(even - odd, x, j + 2 * q);
    store(left - right, x, j + 3 * q);
  }
}

// n a power of four; `w` holds the twiddles of this pass and, behind them, of the smaller ones.
inline void forward_fours(float* x, int64_t n, const float* w) {
  if (n == 1) return;
  forward_pass(x, n, w);
  for (int64_t r = 0; n > 4 && r < 4; ++r) forward_fours(x + r * (n / 2) * lanes(), n / 4, w + n / 4 * 6);
}

inline void inverse_fours(float* x, int64_t n, const float* w) {
  if (n == 1) return;
  for (int64_t r = 0; n > 4 && r < 4; ++r) inverse_fours(x + r * (n / 2) * lanes(), n / 4, w + n / 4 * 6);
  inverse_pass(x, n, w);
}

inline bool is_power_of_four(int64_t n) { return (n & 0x5555555555555555) != 0; }

inline void forward_fft(const FftTables& t, float* x) {
  const float* w = t.twiddles.data();
  if (is_power_of_four(t.size)) return forward_fours(x, t.size, w);
  const int64_t h = t.size / 2;
  for (int64_t j = 0; j < h; ++j) {
    const Complex a = load(x, j), b = load(x, j + h);
    store(a + b, x, j);
    store(times(a - b, constant(w + 2 * j)), x, j + h);
  }
  forward_fours(x, h, w + 2 * h);
  forward_fours(x + 2 * h * lanes(), h, w + 2 * h);
}

// Without the factor 1 / size.
inline void inverse_fft(const FftTables& t, float* x) {
  const float* w = t.twiddles.data();
  if (is_power_of_four(t.size)) return inverse_fours(x, t.size, w);
  const int64_t h = t.size / 2;
  inverse_fours(x, h, w + 2 * h);
  inverse_fours(x + 2 * h * lanes(), h, w + 2 * h);
  for (int64_t j = 0; j < h; ++j) {
    const Complex a = load(x, j), b = conjugate_times(constant(w + 2 * j), load(x, j + h));
    store(a + b, x, j);
    store(a - b, x, j + h);
  }
}

// The spectrum X of 2 size real numbers out of the transform Z of them taken as size complex ones, at frequencies k
// and size - k; `w` = exp(-i pi k / size). Both spectra have X(0) and X(size), which are real, as parts of element 0.
struct Pair {
  Complex low, high;  // at k and size - k
};

HWY_INLINE Pair separate(const Pair& z, const Complex& w) {
  const Complex even = scaled(z.low + conjugate(z.high), 0.5f);
  const Complex odd = scaled(times_i(conjugate(z.high) - z.low), 0.5f);  // -i/2 (Z - conj Z')
  const Complex turned = times(w, odd);
  return {even + turned, conjugate(even - turned)};
}

HWY_INLINE Pair join(const Pair& x, const Complex& w) {
  const Complex even = scaled(x.low + conjugate(x.high), 0.5f),
                turned = scaled(x.low - conjugate(x.high), 0.5f);
  const Complex odd = times_i(conjugate_times(w, turned));
  return {even + odd, conjugate(even - odd)};
}

HWY_INLINE Complex separate_ends(const Complex& z) { return {hn::Add(z.re, z.im), hn::Sub(z.re, z.im)}; }
HWY_INLINE Complex join_ends(const Complex& x) {
  return scaled({hn::Add(x.re, x.im), hn::Sub(x.re, x.im)}, 0.5f);
}

// Calls ends() for element 0 and pair(low, high, w) for the positions of every other pair of frequencies.
template <class Ends, class Each>
HWY_INLINE void for_pairs(const FftTables& t, const Ends& ends, const Each& pair) {
  ends();
  for (int64_t k = 0; k < t.size / 2; ++k)
    pair(t.pairs[static_cast<size_t>(2 * k)], t.pairs[static_cast<size_t>(2 * k + 1)],
         constant(&t.rotations[static_cast<size_t>(2 * k)]));
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#endif
