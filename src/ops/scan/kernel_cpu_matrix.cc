// h_t = A_t h_{t-1} + b_t with a 2 x 2 matrix A_t for each channel. Lanes are channels: the entries of A and of
// h lie in rows of E numbers, so that nothing has to be shuffled.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/scan/kernel_cpu_matrix.cc"
#include "ops/simd/targets.h"
//
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/scan/kernel.h"
#include "ops/simd/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
namespace sv = simd::HWY_NAMESPACE;
using sv::Floats;
using sv::VecF;

struct Pair {
  VecF x0, x1;
};

struct Matrix {
  VecF a00, a01, a10, a11;
};

// Channels [channel, channel + lanes) of rows of E; `left` of them exist.
struct Lanes {
  int64_t channels, channel, left;

  HWY_INLINE VecF load(const float* row) const { return sv::load_part(Floats(), row + channel, left); }
  HWY_INLINE void store(VecF x, float* row) const { sv::store_part(x, Floats(), row + channel, left); }
  HWY_INLINE Pair pair(const float* p) const { return {load(p), load(p + channels)}; }
  HWY_INLINE void store(const Pair& x, float* p) const { store(x.x0, p), store(x.x1, p + channels); }
  HWY_INLINE Matrix matrix(const float* p) const {
    return {load(p), load(p + channels), load(p + 2 * channels), load(p + 3 * channels)};
  }
};

Pair zero() { return {hn::Zero(Floats()), hn::Zero(Floats())}; }

void forward(const ScanProblem& p, const Lanes& lanes, int64_t batch) {
  const int64_t row = 2 * p.channels;
  Pair h = p.initial ? lanes.pair(p.initial + batch * row) : zero();
  for (int64_t t = batch * p.tokens; t < (batch + 1) * p.tokens; ++t) {
    const Pair b = lanes.pair(p.b + t * row);
    if (p.starts && p.starts[t]) {
      h = b;
    } else {
      const Matrix a = lanes.matrix(p.a + t * 2 * row);
      h = {hn::MulAdd(a.a00, h.x0, hn::MulAdd(a.a01, h.x1, b.x0)),
           hn::MulAdd(a.a10, h.x0, hn::MulAdd(a.a11, h.x1, b.x1))};
    }
    lanes.store(h, p.h + t * row);
  }
  lanes.store(h, p.state + batch * row);
}

// da_t = g_t h_{t-1}', where g_t is the gradient of h_t.
HWY_INLINE void store_matrix_gradient(const Lanes& lanes, const Pair& g, const Pair& before, float* da) {
  const VecF entries[] = {hn::Mul(g.x0, before.x0), hn::Mul(g.x0, before.x1), hn::Mul(g.x1, before.x0),
                          hn::Mul(g.x1, before.x1)};
  for (int64_t i = 0; i < 4; ++i) lanes.store(entries[i], da + i * lanes.channels);
}

void backward(const ScanGradient& gradient, const Lanes& lanes, int64_t batch) {
  const ScanProblem& p = gradient.forward;
  const int64_t row = 2 * p.channels;
  Pair g = lanes.pair(gradient.dstate + batch * row);
  for (int64_t t = (batch + 1) * p.tokens - 1; t >= batch * p.tokens; --t) {
    const Pair dh = lanes.pair(gradient.dh + t * row);
    g = {hn::Add(g.x0, dh.x0), hn::Add(g.x1, dh.x1)};
    lanes.store(g, gradient.db + t * row);
    const bool start = p.starts && p.starts[t], first = t == batch * p.tokens;
    if (gradient.da) {
      const Pair before = start || (first && !p.initial) ? zero()
                          : first                        ? lanes.pair(p.initial + batch * row)
                                                         : lanes.pair(p.h + (t - 1) * row);
      store_matrix_gradient(lanes, g, before, gradient.da + t * 2 * row);
    }
    const Matrix a = lanes.matrix(p.a + t * 2 * row);
    g = start ? zero()
              : Pair{hn::MulAdd(a.a00, g.x0, hn::Mul(a.a10, g.x1)),
                     hn::MulAdd(a.a01, g.x0, hn::Mul(a.a11, g.x1))};
  }
  if (gradient.dinitial) lanes.store(g, gradient.dinitial + batch * row);
}

// Calls pass(lanes, batch) for the vectors of channels of each task.
template <class Pass>
void for_each_vector(const ScanProblem& p, int64_t begin, int64_t end, const Pass& pass) {
  const auto width = static_cast<int64_t>(hn::Lanes(Floats()));
  const int64_t blocks = scan_tasks(p.channels);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task % blocks * kScanBlock;
    const int64_t stop = first + kScanBlock < p.channels ? first + kScanBlock : p.channels;
    for (int64_t channel = first; channel < stop; channel += width)
      pass(Lanes{p.channels, channel, stop - channel}, task / blocks);
  }
}

void matrix_scan_forward(const ScanProblem& p, int64_t begin, int64_t end) {
  for_each_vector(p, begin, end, [&](const Lanes& lanes, int64_t batch) { forward(p, lanes, batch); });
}

void matrix_scan_backward(const ScanGradient& p, int64_t begin, int64_t end) {
  for_each_vector(p.forward, begin, end,
                  [&](const Lanes& lanes, int64_t batch) { backward(p, lanes, batch); });
}

}  // namespace
}  // namespace weft::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(matrix_scan_forward, (const ScanProblem& p, int64_t begin, int64_t end), (p, begin, end))
WEFT_SIMD_DISPATCH(matrix_scan_backward, (const ScanGradient& p, int64_t begin, int64_t end), (p, begin, end))
}  // namespace weft::kernels
#endif
