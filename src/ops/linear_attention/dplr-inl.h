// What forward and backward of a diagonal plus low rank erase have in common.
#if defined(WEFT_OPS_LINEAR_ATTENTION_DPLR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_OPS_LINEAR_ATTENTION_DPLR_INL_H_
#undef WEFT_OPS_LINEAR_ATTENTION_DPLR_INL_H_
#else
#define WEFT_OPS_LINEAR_ATTENTION_DPLR_INL_H_
#endif

#include <cmath>

#include "hwy/cache_control.h"
#include "ops/linear_attention/chunk-inl.h"
#include "ops/linear_attention/kernel_dplr.h"
#include "ops/simd/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {

// Row of a or b of token t.
inline const float* erase_row(const DplrProblem& p, const HeadRows& x, const Chunk& c, int64_t t) {
  return x.at(c.batch, t, c.head / (p.heads / p.erase_heads));
}

// to [K] = what token t multiplies every key channel of the state with.
inline void decay_factors(const DplrProblem& p, const Chunk& c, int64_t t, float* to) {
  if (p.decay == Decay::vector)
    exp_row(p.key_width, p.log_decay.at(c.batch, t, c.head), to);
  else
    fill_row(p.key_width, p.decay == Decay::none ? 1 : std::exp(*p.log_decay.at(c.batch, t, c.head)), to);
}

// Inlined by force: gcc drops calls of functions that only prefetch.
HWY_INLINE void prefetch_row(const float* from, int64_t width) {
  constexpr int64_t kLine = 16;
  for (int64_t i = 0; i < width; i += kLine) hwy::Prefetch(from + i);
}

// Asks for the inputs of token c.begin + r, if it has one: their rows lie far apart, which no hardware foresees.
HWY_INLINE void prefetch_token(const DplrProblem& p, const Chunk& c, int64_t r) {
  if (r >= c.rows) return;
  const int64_t t = c.begin + r;
  prefetch_row(p.q.at(c.batch, t, c.key_head), p.key_width);
  prefetch_row(p.k.at(c.batch, t, c.key_head), p.key_width);
  prefetch_row(erase_row(p, p.erase_read, c, t), p.key_width);
  prefetch_row(erase_row(p, p.erase_write, c, t), p.key_width);
  if (p.decay == Decay::vector) prefetch_row(p.log_decay.at(c.batch, t, c.head), p.key_width);
  prefetch_row(p.v.at(c.batch, t, c.head), p.value_width);
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEFT_OPS_LINEAR_ATTENTION_DPLR_INL_H_
