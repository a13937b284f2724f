// Long convolution: transforms of a few channels of a sequence, products of spectra, and back.
#include <algorithm>

#include "ops/conv/fft_kernel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/conv/kernel_cpu_fft.cc"
#include "ops/simd/targets.h"

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/conv/fft-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {

// Element j becomes tokens 2 j and 2 j + 1 of `channels` channels from `first` on.
void load_rows(const FftTables& t, const FftRows& rows, int64_t first, int64_t channels, float* x) {
  const Floats d;
  const auto row = [&](int64_t token) HWY_ATTR {
    return token < rows.tokens ? sv::load_part(d, rows.data + token * rows.token + first, channels)
                               : hn::Zero(d);
  };
  const int64_t filled = std::min(t.size, (rows.tokens + 1) / 2);
  for (int64_t j = 0; j < filled; ++j) store({row(2 * j), row(2 * j + 1)}, x, j);
  std::fill(x + 2 * filled * lanes(), x + 2 * t.size * lanes(), 0.0f);
}

void store_rows(const FftTables& t, const float* x, int64_t first, int64_t channels, const FftOut& out) {
  const Floats d;
  const VecF scale = hn::Set(d, 1.0f / static_cast<float>(t.size));
  for (int64_t i = 0; i < out.tokens; ++i) {
    const int64_t token = out.first + i;
    float* to = out.data + i * out.token + first;
    VecF y = hn::Mul(scale, hn::LoadU(d, x + (2 * (token / 2) + token % 2) * lanes()));
    if (out.add) y = hn::Add(y, sv::load_part(d, to, channels));
    sv::store_part(y, d, to, channels);
  }
}

// x: the transform of packed numbers becomes the spectrum of the real ones.
void separate_all(const FftTables& t, float* x) {
  for_pairs(
      t, [&]() HWY_ATTR { store(separate_ends(load(x, 0)), x, 0); },
      [&](int64_t low, int64_t high, const Complex& w) HWY_ATTR {
        const Pair p = separate({load(x, low), load(x, high)}, w);
        store(p.low, x, low);
        store(p.high, x, high);
      });
}

// The spectrum of the kernel, of rows `first` on.
void transform(const FftTables& t, const FftRows& rows, int64_t first, int64_t channels, float* x) {
  load_rows(t, rows, first, channels, x);
  forward_fft(t, x);
  separate_all(t, x);
}

// z: the transform of packed numbers is multiplied with the spectrum h (or its conjugate), and stays packed.
template <bool kConjugate>
void multiply_packed(const FftTables& t, const float* h, float* z) {
  const auto product = [](const Complex& a, const Complex& b)
                           HWY_ATTR { return kConjugate ? conjugate_times(a, b) : times(a, b); };
  for_pairs(
      t,
      [&]() HWY_ATTR {
        const Complex a = load(h, 0), b = separate_ends(load(z, 0));
        store(join_ends({hn::Mul(a.re, b.re), hn::Mul(a.im, b.im)}), z, 0);
      },
      [&](int64_t low, int64_t high, const Complex& w) HWY_ATTR {
        const Pair x = separate({load(z, low), load(z, high)}, w);
        const Pair y = join({product(load(h, low), x.low), product(load(h, high), x.high)}, w);
        store(y.low, z, low);
        store(y.high, z, high);
      });
}

// sum += conj(u) dy, all spectra of real numbers.
void add_correlation(const FftTables& t, const float* u, const float* dy, float* sum) {
  const Complex a = load(u, 0), b = load(dy, 0), old = load(sum, 0);
  store({hn::MulAdd(a.re, b.re, old.re), hn::MulAdd(a.im, b.im, old.im)}, sum, 0);
  for (int64_t j = 1; j < t.size; ++j) store(load(sum, j) + conjugate_times(load(u, j), load(dy, j)), sum, j);
}

void join_all(const FftTables& t, float* x) {
  for_pairs(
      t, [&]() HWY_ATTR { store(join_ends(load(x, 0)), x, 0); },
      [&](int64_t low, int64_t high, const Complex& w) HWY_ATTR {
        const Pair p = join({load(x, low), load(x, high)}, w);
        store(p.low, x, low);
        store(p.high, x, high);
      });
}

// Calls body(first channel, channels of the vector, offset of its spectrum) for the vectors of a task.
template <class Body>
void for_vectors(const LongConvProblem& p, int64_t task, const Body& body) {
  const int64_t begin = task * kFftChannels, end = std::min(begin + kFftChannels, p.channels);
  for (int64_t first = begin; first < end; first += lanes())
    body(first, end - first, task * spectrum_floats(p) + 2 * p.tables->size * (first - begin));
}

void long_conv_spectrum(const LongConvProblem& p, float*, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task)
    for_vectors(p, task, [&](int64_t first, int64_t channels, int64_t at) {
      transform(*p.tables, p.kernel, first, channels, p.spectrum + at);
    });
}

void long_conv_forward(const LongConvProblem& p, float* scratch, int64_t begin, int64_t end) {
  const FftTables& t = *p.tables;
  float* own = scratch;
  float* x = own + 2 * t.size * lanes();
  for (int64_t task = begin; task < end; ++task)
    for_vectors(p, task, [&](int64_t first, int64_t channels, int64_t at) {
      const float* h = p.spectrum ? p.spectrum + at : own;
      if (!p.spectrum) transform(t, p.kernel, first, channels, own);
      for (int64_t s = 0; s < p.sequences; ++s) {
        load_rows(t, p.u[s], first, channels, x);
        forward_fft(t, x);
        multiply_packed<false>(t, h, x);
        inverse_fft(t, x);
        store_rows(t, x, first, channels, p.y[s]);
      }
    });
}

void long_conv_backward(const LongConvProblem& p, const LongConvGradients& g, float* scratch, int64_t begin,
                        int64_t end) {
  const FftTables& t = *p.tables;
  const int64_t size = 2 * t.size * lanes();
  float *h = scratch, *dy = h + size, *spectrum = dy + size, *sum = spectrum + size;
  for (int64_t task = begin; task < end; ++task)
    for_vectors(p, task, [&](int64_t first, int64_t channels, int64_t) {
      if (g.du) transform(t, p.kernel, first, channels, h);
      std::fill(sum, sum + size, 0.0f);
      for (int64_t s = 0; s < p.sequences; ++s) {
        load_rows(t, g.dy[s], first, channels, dy);
        forward_fft(t, dy);
        if (g.dkernel.data) {
          std::copy(dy, dy + size, spectrum);
          separate_all(t, spectrum);
        }
        if (g.du) {
          multiply_packed<true>(t, h, dy);
          inverse_fft(t, dy);
          store_rows(t, dy, first, channels, g.du[s]);
        }
        if (g.dkernel.data) {
          transform(t, p.u[s], first, channels, dy);
          add_correlation(t, dy, spectrum, sum);
        }
      }
      if (!g.dkernel.data) return;
      join_all(t, sum);
      inverse_fft(t, sum);
      store_rows(t, sum, first, channels, g.dkernel);
    });
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(long_conv_spectrum, (const LongConvProblem& p, float* scratch, int64_t begin, int64_t end),
                   (p, scratch, begin, end))
WEFT_SIMD_DISPATCH(long_conv_forward, (const LongConvProblem& p, float* scratch, int64_t begin, int64_t end),
                   (p, scratch, begin, end))
WEFT_SIMD_DISPATCH(long_conv_backward,
                   (const LongConvProblem& p, const LongConvGradients& g, float* scratch, int64_t begin,
                    int64_t end),
                   (p, g, scratch, begin, end))
}  // namespace weft::kernels
#endif
