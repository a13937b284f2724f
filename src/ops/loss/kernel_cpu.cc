#include "ops/loss/kernel.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/loss/kernel_cpu.cc"
#include "ops/simd/targets.h"

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/simd/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace sv = simd::HWY_NAMESPACE;
using sv::Floats;
using sv::VecF;

constexpr int64_t kSums = 4;  // independent sums, so that additions need not wait for each other

// Largest of scale x[i].
float largest(const float* x, int64_t count, float scale) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VecF factor = hn::Set(d, scale);
  float best = -std::numeric_limits<float>::infinity();
  int64_t i = 0;
  if (count >= kSums * lanes) {
    VecF top[kSums];
    for (auto& t : top) t = hn::Set(d, best);
    for (; i + kSums * lanes <= count; i += kSums * lanes)
      for (int64_t s = 0; s < kSums; ++s)
        top[s] = hn::Max(top[s], hn::Mul(factor, hn::LoadU(d, x + i + s * lanes)));
    best = sv::max_lanes(d, hn::Max(hn::Max(top[0], top[1]), hn::Max(top[2], top[3])));
  }
  for (; i < count; ++i) best = std::max(best, scale * x[i]);
  return best;
}

// Sum of exp(scale x[i] - shift).
float sum_of_exponentials(const float* x, int64_t count, float scale, float shift) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const VecF factor = hn::Set(d, scale), down = hn::Set(d, shift);
  VecF sum[kSums];
  for (auto& s : sum) s = hn::Zero(d);
  int64_t i = 0;
  for (; i + kSums * lanes <= count; i += kSums * lanes)
    for (int64_t s = 0; s < kSums; ++s)
      sum[s] = hn::Add(sum[s], sv::exp_lanes(d, hn::MulSub(factor, hn::LoadU(d, x + i + s * lanes), down)));
  for (; i + lanes <= count; i += lanes)
    sum[0] = hn::Add(sum[0], sv::exp_lanes(d, hn::MulSub(factor, hn::LoadU(d, x + i), down)));
  float total = sv::sum_lanes(d, hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3])));
  for (; i < count; ++i) total += std::exp(scale * x[i] - shift);
  return total;
}

void loss_rows(const LossProblem& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    p.lse[row] = p.losses[row] = 0;
    if (p.targets[row] == p.ignore) continue;
    const float* x = p.logits + row * p.vocabulary;
    const float shift = largest(x, p.vocabulary, p.scale);
    const float log_sum = std::log(sum_of_exponentials(x, p.vocabulary, p.scale, shift));
    p.lse[row] = shift + log_sum;
    p.losses[row] = log_sum + (shift - p.scale * x[p.targets[row]]);
  }
}

void loss_gradient(const LossProblem& p, int64_t begin, int64_t end) {
  const Floats d;
  const VecF factor = hn::Set(d, p.scale);
  for (int64_t row = begin; row < end; ++row) {
    float* x = p.logits + row * p.vocabulary;
    const float up = p.upstream[row] * p.scale;
    if (p.targets[row] == p.ignore) {
      std::fill(x, x + p.vocabulary, 0.0f);
      continue;
    }
    const VecF down = hn::Set(d, p.lse[row]), ups = hn::Set(d, up);
    for (int64_t i = 0; i < p.vocabulary; i += static_cast<int64_t>(hn::Lanes(d))) {
      const int64_t left = p.vocabulary - i;
      const VecF probability = sv::exp_lanes(d, hn::MulSub(factor, sv::load_part(d, x + i, left), down));
      sv::store_part(hn::Mul(ups, probability), d, x + i, left);
    }
    x[p.targets[row]] -= up;
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(loss_rows, (const LossProblem& p, int64_t begin, int64_t end), (p, begin, end))
WEFT_SIMD_DISPATCH(loss_gradient, (const LossProblem& p, int64_t begin, int64_t end), (p, begin, end))
}  // namespace weft::kernels
#endif
