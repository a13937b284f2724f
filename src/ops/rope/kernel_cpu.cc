#include "ops/rope/kernel.h"

#include <algorithm>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rope/kernel_cpu.cc"
#include "ops/simd/targets.h"

#include "hwy/foreach_target.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Doubles = hn::ScalableTag<double>;
using VecD = hn::Vec<Doubles>;
using Floats = hn::ScalableTag<float>;
using VecF = hn::Vec<Floats>;

// sum of coefficients[i] x^i by Horner's rule.
template <size_t kTerms>
HWY_INLINE VecD polynomial(Doubles d, VecD x, const double (&coefficients)[kTerms]) {
  VecD sum = hn::Set(d, coefficients[kTerms - 1]);
  for (size_t i = kTerms - 1; i-- > 0;) sum = hn::MulAdd(sum, x, hn::Set(d, coefficients[i]));
  return sum;
}

// Taylor terms: on [-pi/4, pi/4] the first one left out is below 2e-12 (sine) and 5e-12 (cosine).
constexpr double kSine[] = {1.0, -1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800};
constexpr double kCosine[] = {1.0,         -1.0 / 2,       1.0 / 24,       -1.0 / 720,
                              1.0 / 40320, -1.0 / 3628800, 1.0 / 479001600};

struct SineCosine {
  VecD sine, cosine;
};

HWY_INLINE SineCosine sine_cosine(Doubles d, VecD angle) {
  constexpr double kQuarterHigh = 1.5707963267948966;    // pi / 2 rounded to fp64
  constexpr double kQuarterLow = 6.123233995736766e-17;  // what the rounding left out
  constexpr double kQuartersPerRadian = 0.6366197723675814;
  const VecD quarters = hn::Round(hn::Mul(angle, hn::Set(d, kQuartersPerRadian)));
  VecD rest = hn::NegMulAdd(quarters, hn::Set(d, kQuarterHigh), angle);
  rest = hn::NegMulAdd(quarters, hn::Set(d, kQuarterLow), rest);
  const VecD square = hn::Mul(rest, rest);
  const VecD sine = hn::Mul(rest, polynomial(d, square, kSine)), cosine = polynomial(d, square, kCosine);

  // quarters modulo 4 is 0, 1, 2 or 3: odd ones exchange the two, 1 and 2 turn the cosine's sign, 2 and 3 the
  // sine's.
  const VecD four = hn::Set(d, 4.0), one = hn::Set(d, 1.0), two = hn::Set(d, 2.0);
  const VecD turn = hn::Sub(quarters, hn::Mul(four, hn::Floor(hn::Mul(quarters, hn::Set(d, 0.25)))));
  const auto odd = hn::Or(hn::Eq(turn, one), hn::Eq(turn, hn::Set(d, 3.0)));
  const auto sine_flips = hn::Ge(turn, two);
  const auto cosine_flips = hn::Or(hn::Eq(turn, one), hn::Eq(turn, two));
  const VecD s = hn::IfThenElse(odd, cosine, sine), c = hn::IfThenElse(odd, sine, cosine);
  return {hn::IfThenElse(sine_flips, hn::Neg(s), s), hn::IfThenElse(cosine_flips, hn::Neg(c), c)};
}

void rope_table(const RopeProblem& p, int64_t begin, int64_t end) {
  const Doubles d;
  const hn::Rebind<float, Doubles> narrow;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VecD magnitude = hn::Set(d, p.magnitude);
  HWY_ALIGN float spill[2][hn::MaxLanes(narrow)];
  for (int64_t token = begin; token < end; ++token) {
    const VecD position = hn::Set(d, static_cast<double>(p.positions[token]));
    const double* frequencies = p.frequencies + token * p.frequency_stride;
    float *cosines = p.cosines + token * p.pairs, *sines = p.sines + token * p.pairs;
    for (int64_t i = 0; i < p.pairs; i += lanes) {
      const int64_t left = p.pairs - i;
      const VecD frequency =
          left >= lanes ? hn::LoadU(d, frequencies + i)
                        : hn::MaskedLoad(hn::FirstN(d, static_cast<size_t>(left)), d, frequencies + i);
      const SineCosine both = sine_cosine(d, hn::Mul(position, frequency));
      const auto c = hn::DemoteTo(narrow, hn::Mul(magnitude, both.cosine));
      const auto s = hn::DemoteTo(narrow, hn::Mul(magnitude, both.sine));
      if (left >= lanes) {
        hn::StoreU(c, narrow, cosines + i);
        hn::StoreU(s, narrow, sines + i);
      } else {
        hn::Store(c, narrow, spill[0]);
        hn::Store(s, narrow, spill[1]);
        std::copy(spill[0], spill[0] + left, cosines + i);
        std::copy(spill[1], spill[1] + left, sines + i);
      }
    }
  }
}

void turn_head(const RopeProblem& p, const float* cosines, const float* sines, const float* x, float* y) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const float sign = p.backwards ? -1.0f : 1.0f;
  const VecF signs = hn::Set(d, sign);
  const int64_t apart = p.interleaved ? 1 : p.pairs, step = p.interleaved ? 2 : 1;
  int64_t i = 0;
  for (; i + lanes <= p.pairs; i += lanes) {
    const VecF c = hn::LoadU(d, cosines + i), s = hn::Mul(signs, hn::LoadU(d, sines + i));
    VecF a, b;
    if (p.interleaved) {
      hn::LoadInterleaved2(d, x + 2 * i, a, b);
    } else {
      a = hn::LoadU(d, x + i);
      b = hn::LoadU(d, x + p.pairs + i);
    }
    const VecF first = hn::NegMulAdd(b, s, hn::Mul(a, c)), second = hn::MulAdd(a, s, hn::Mul(b, c));
    if (p.interleaved) {
      hn::StoreInterleaved2(first, second, d, y + 2 * i);
    } else {
      hn::StoreU(first, d, y + i);
      hn::StoreU(second, d, y + p.pairs + i);
    }
  }
  for (; i < p.pairs; ++i) {
    const float c = cosines[i], s = sign * sines[i], a = x[step * i], b = x[step * i + apart];
    y[step * i] = a * c - b * s;
    y[step * i + apart] = b * c + a * s;
  }
  std::copy(x + 2 * p.pairs, x + p.width, y + 2 * p.pairs);
}

void rope_turn(const RopeProblem& p, int64_t begin, int64_t end) {
  for (int64_t token = begin; token < end; ++token)
    for (int64_t head = 0; head < p.heads; ++head) {
      const int64_t at = (token * p.heads + head) * p.width;
      turn_head(p, p.cosines + token * p.pairs, p.sines + token * p.pairs, p.x + at, p.y + at);
    }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(rope_table, (const RopeProblem& p, int64_t begin, int64_t end), (p, begin, end))
WEFT_SIMD_DISPATCH(rope_turn, (const RopeProblem& p, int64_t begin, int64_t end), (p, begin, end))
}  // namespace weft::kernels
#endif
