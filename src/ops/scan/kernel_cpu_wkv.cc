// The RWKV-4 recurrence: one vector of channels stays in registers over all tokens, its sums as (a, b) e^m.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/scan/kernel_cpu_wkv.cc"
#include "ops/simd/targets.h"
//
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/scan/kernel_wkv.h"
#include "ops/simd/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using simd::HWY_NAMESPACE::exp_lanes;
using simd::HWY_NAMESPACE::Floats;
using simd::HWY_NAMESPACE::load_part;
using simd::HWY_NAMESPACE::store_part;
using V = simd::HWY_NAMESPACE::VecF;

constexpr float kNothing = -1e38f;  // the exponent of an empty sum

// Three parts of a state, rows of E channels apart.
struct Sums {
  V a, b, m;
  static HWY_INLINE Sums none() {
    return {hn::Zero(Floats()), hn::Zero(Floats()), hn::Set(Floats(), kNothing)};
  }
  static HWY_INLINE Sums load(const float* p, int64_t row, int64_t left) {
    const Floats d;
    return {load_part(d, p, left), load_part(d, p + row, left), load_part(d, p + 2 * row, left)};
  }
  HWY_INLINE void store(float* p, int64_t row, int64_t left) const {
    const Floats d;
    store_part(a, d, p, left);
    store_part(b, d, p + row, left);
    store_part(m, d, p + 2 * row, left);
  }
};

// What one token's output is made of: y = (past a + now v) / size, all scaled by e^-top.
struct Read {
  V top, past, now, size;
  HWY_INLINE Read(const Sums& s, V u, V k) {
    const Floats d;
    const V own = hn::Add(u, k);
    top = hn::Max(s.m, own);
    past = exp_lanes(d, hn::Sub(s.m, top));
    now = exp_lanes(d, hn::Sub(own, top));
    size = hn::MulAdd(past, s.b, now);
  }
  HWY_INLINE V y(const Sums& s, V v) const { return hn::Div(hn::MulAdd(past, s.a, hn::Mul(now, v)), size); }
};

void forward_lanes(const WkvProblem& p, int64_t batch, int64_t channel, int64_t left) {
  const Floats d;
  const int64_t row = p.channels, state = batch * 3 * row + channel;
  const V w = load_part(d, p.w + channel, left), u = load_part(d, p.u + channel, left);
  Sums s = p.initial ? Sums::load(p.initial + state, row, left) : Sums::none();
  for (int64_t t = 0; t < p.tokens; ++t) {
    const int64_t token = batch * p.tokens + t, at = token * row + channel;
    if (p.starts && p.starts[token]) s = Sums::none();
    if (p.saved) s.store(p.saved + token * 3 * row + channel, row, left);
    const V k = load_part(d, p.k + at, left), v = load_part(d, p.v + at, left);
    store_part(Read(s, u, k).y(s, v), d, p.y + at, left);
    const V kept = hn::Add(s.m, w), next = hn::Max(kept, k);
    const V keep = exp_lanes(d, hn::Sub(kept, next)), write = exp_lanes(d, hn::Sub(k, next));
    s = {hn::MulAdd(keep, s.a, hn::Mul(write, v)), hn::MulAdd(keep, s.b, write), next};
  }
  s.store(p.state + state, row, left);
}

// The gradients of the true sums a and b go backwards as (g.a, g.b) e^{g.m}, where g.m is at most minus the exponent
// of any term in the sums, so that no product overflows. `dm` is that of the exponent itself, which follows the
// largest term.
void backward_lanes(const WkvGradient& g, int64_t batch, int64_t channel, int64_t left) {
  const WkvProblem& p = g.forward;
  const Floats d;
  const V zero = hn::Zero(d);
  const int64_t row = p.channels, state = batch * 3 * row + channel;
  const V w = load_part(d, p.w + channel, left), u = load_part(d, p.u + channel, left);
  const Sums last = Sums::load(p.state + state, row, left);
  Sums s = Sums::load(g.dstate + state, row, left);
  V dm = hn::Sub(s.m, hn::MulAdd(last.a, s.a, hn::Mul(last.b, s.b))), dw = zero, du = zero;
  s.m = hn::Neg(last.m);
  for (int64_t t = p.tokens - 1; t >= 0; --t) {
    const int64_t token = batch * p.tokens + t, at = token * row + channel;
    const V k = load_part(d, p.k + at, left), v = load_part(d, p.v + at, left);
    const Sums before = Sums::load(p.saved + token * 3 * row + channel, row, left);

    const V kept = hn::Add(before.m, w), write = exp_lanes(d, hn::Add(k, s.m));
    const auto from_past = hn::Ge(kept, k);
    V dk = hn::MulAdd(write, hn::MulAdd(s.a, v, s.b), hn::IfThenElse(from_past, zero, dm));
    V dv = hn::Mul(write, s.a);
    dm = hn::IfThenElse(from_past, dm, zero);
    dw = hn::Add(dw, hn::MulAdd(exp_lanes(d, hn::Add(kept, s.m)),
                                hn::MulAdd(s.a, before.a, hn::Mul(s.b, before.b)), dm));

    const Read read(before, u, k);
    const V y = read.y(before, v), c = hn::Div(load_part(d, g.dy + at, left), read.size);
    const V own = hn::Mul(read.now, c), through_weight = hn::Mul(own, hn::Sub(v, y));
    dk = hn::Add(dk, through_weight);
    du = hn::Add(du, through_weight);
    dv = hn::Add(dv, own);
    const V later = hn::Add(s.m, w), here = hn::Neg(read.top), next = hn::Max(later, here);
    const V keep = exp_lanes(d, hn::Sub(later, next)), add = hn::Mul(exp_lanes(d, hn::Sub(here, next)), c);
    s = {hn::MulAdd(keep, s.a, add), hn::NegMulAdd(add, y, hn::Mul(keep, s.b)), next};

    store_part(dk, d, g.dk + at, left);
    store_part(dv, d, g.dv + at, left);
    if (p.starts && p.starts[token]) s = Sums::none(), dm = zero;
  }
  const Sums first = p.initial ? Sums::load(p.initial + state, row, left) : Sums::none();
  const V scale = exp_lanes(d, hn::Add(first.m, s.m));
  s.a = hn::Mul(scale, s.a);
  s.b = hn::Mul(scale, s.b);
  s.m = hn::Add(dm, hn::MulAdd(first.a, s.a, hn::Mul(first.b, s.b)));
  s.store(g.dinitial + state, row, left);
  store_part(dw, d, g.dw + batch * row + channel, left);
  store_part(du, d, g.du + batch * row + channel, left);
}

// Calls pass(batch, channel, channels left) for each vector of channels of the tasks.
template <class Pass>
void for_lanes(const WkvProblem& p, int64_t begin, int64_t end, const Pass& pass) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(Floats())), blocks = scan_tasks(p.channels);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task % blocks * kScanBlock;
    const int64_t stop = first + kScanBlock < p.channels ? first + kScanBlock : p.channels;
    for (int64_t channel = first; channel < stop; channel += lanes)
      pass(task / blocks, channel, stop - channel);
  }
}

void wkv_forward(const WkvProblem& p, int64_t begin, int64_t end) {
  for_lanes(p, begin, end,
            [&](int64_t batch, int64_t channel, int64_t left) { forward_lanes(p, batch, channel, left); });
}

void wkv_backward(const WkvGradient& g, int64_t begin, int64_t end) {
  for_lanes(g.forward, begin, end,
            [&](int64_t batch, int64_t channel, int64_t left) { backward_lanes(g, batch, channel, left); });
}

}  // namespace
}  // namespace weft::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(wkv_forward, (const WkvProblem& p, int64_t begin, int64_t end), (p, begin, end))
WEFT_SIMD_DISPATCH(wkv_backward, (const WkvGradient& g, int64_t begin, int64_t end), (g, begin, end))
}  // namespace weft::kernels
#endif
