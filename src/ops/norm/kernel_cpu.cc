#include "ops/norm/kernel.h"

#include <algorithm>
#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/norm/kernel_cpu.cc"
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

struct Statistics {
  float mean = 0;
  float scale = 0;  // 1 / sqrt(mean or sum of squares + eps)
};

// Of the `width` numbers at u.
template <bool kCentre>
Statistics statistics(const NormProblem& p, const float* u) {
  const Floats d;
  const auto step = static_cast<int64_t>(hn::Lanes(d));
  Statistics s;
  if constexpr (kCentre) {
    VecF sum = hn::Zero(d);
    for (int64_t i = 0; i < p.width; i += step) sum = hn::Add(sum, sv::load_part(d, u + i, p.width - i));
    s.mean = sv::sum_lanes(d, sum) / static_cast<float>(p.width);
  }
  const VecF mean = hn::Set(d, s.mean);
  VecF squares = hn::Zero(d), more = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * step <= p.width; i += 2 * step) {
    const VecF a = hn::Sub(hn::LoadU(d, u + i), mean), b = hn::Sub(hn::LoadU(d, u + i + step), mean);
    squares = hn::MulAdd(a, a, squares);
    more = hn::MulAdd(b, b, more);
  }
  squares = hn::Add(squares, more);
  for (; i + step <= p.width; i += step) {
    const VecF a = hn::Sub(hn::LoadU(d, u + i), mean);
    squares = hn::MulAdd(a, a, squares);
  }
  float sum = sv::sum_lanes(d, squares);
  for (; i < p.width; ++i) sum += (u[i] - s.mean) * (u[i] - s.mean);
  s.scale = 1.0f / std::sqrt(sum * p.inverse_count + p.eps);
  return s;
}

HWY_INLINE VecF weight_at(const NormProblem& p, Floats d, int64_t i) {
  return p.weight ? sv::load_part(d, p.weight + i, p.width - i) : hn::Set(d, 1.0f);
}

// u = x silu(gate), kept in `u`; with `sigmoid` also the gate's sigmoid.
void gate_input(const NormProblem& p, const float* x, const float* gate, float* u, float* sigmoid) {
  const Floats d;
  for (int64_t i = 0; i < p.width; i += static_cast<int64_t>(hn::Lanes(d))) {
    const VecF g = sv::load_part(d, gate + i, p.width - i);
    const VecF s = sv::sigmoid_lanes(d, g);
    sv::store_part(hn::Mul(sv::load_part(d, x + i, p.width - i), hn::Mul(g, s)), d, u + i, p.width - i);
    if (sigmoid) sv::store_part(s, d, sigmoid + i, p.width - i);
  }
}

void add_row(const NormProblem& p, const float* x, const float* residual, float* sum) {
  const Floats d;
  for (int64_t i = 0; i < p.width; i += static_cast<int64_t>(hn::Lanes(d))) {
    const int64_t left = p.width - i;
    sv::store_part(hn::Add(sv::load_part(d, x + i, left), sv::load_part(d, residual + i, left)), d, sum + i,
                   left);
  }
}

template <Gating kGating, bool kCentre>
void forward_row(const NormProblem& p, int64_t row) {
  const Floats d;
  const float* u = p.x + row * p.width;
  const float* gate = kGating == Gating::none ? nullptr : p.gate + row * p.width;
  float* y = p.y + row * p.width;
  if constexpr (kGating == Gating::before) {
    gate_input(p, u, gate, y, nullptr);
    u = y;
  } else if (p.residual) {
    add_row(p, u, p.residual + row * p.width, p.sum + row * p.width);
    u = p.sum + row * p.width;
  }
  const Statistics s = statistics<kCentre>(p, u);
  const VecF mean = hn::Set(d, s.mean), scale = hn::Set(d, s.scale);
  for (int64_t i = 0; i < p.width; i += static_cast<int64_t>(hn::Lanes(d))) {
    const int64_t left = p.width - i;
    VecF v = hn::Mul(hn::Sub(sv::load_part(d, u + i, left), mean), scale);
    v = hn::Mul(v, weight_at(p, d, i));
    if (p.bias) v = hn::Add(v, sv::load_part(d, p.bias + i, left));
    if constexpr (kGating == Gating::after) {
      const VecF g = sv::load_part(d, gate + i, left);
      v = hn::Mul(v, hn::Mul(g, sv::sigmoid_lanes(d, g)));
    }
    sv::store_part(v, d, y + i, left);
  }
}

// With h the normalised input, w the weight and g = dy w (times silu(gate) if that comes after):
//   du = scale (g - mean(g) [if centred] - h sum(g h) inverse_count)
template <Gating kGating, bool kCentre>
void backward_row(const NormProblem& p, int64_t row, float* dweight, float* dbias) {
  const Floats d;
  const auto step = static_cast<int64_t>(hn::Lanes(d));
  const VecF one = hn::Set(d, 1.0f);
  const float *x = p.x + row * p.width, *dy = p.dy + row * p.width;
  const float* gate = kGating == Gating::none ? nullptr : p.gate + row * p.width;
  float* dx = p.dx + row * p.width;
  [[maybe_unused]] float* dgate = kGating == Gating::none ? nullptr : p.dgate + row * p.width;
  const float* u = x;
  if constexpr (kGating == Gating::before) {  // dx holds u and dgate the sigmoid until the last loop
    gate_input(p, x, gate, dx, dgate);
    u = dx;
  }
  const Statistics s = statistics<kCentre>(p, u);
  const VecF mean = hn::Set(d, s.mean), scale = hn::Set(d, s.scale);

  VecF sum_g = hn::Zero(d), sum_gh = hn::Zero(d);
  for (int64_t i = 0; i < p.width; i += step) {
    const int64_t left = p.width - i;
    const VecF h = hn::Mul(hn::Sub(sv::load_part(d, u + i, left), mean), scale);
    VecF up = sv::load_part(d, dy + i, left);  // gradient of h w, before the weight
    const VecF w = weight_at(p, d, i);
    if constexpr (kGating == Gating::after) {
      const VecF a = sv::load_part(d, gate + i, left);
      const VecF sigmoid = sv::sigmoid_lanes(d, a);
      const VecF slope = hn::Mul(sigmoid, hn::MulAdd(a, hn::Sub(one, sigmoid), one));
      sv::store_part(hn::Mul(hn::Mul(up, w), hn::Mul(h, slope)), d, dgate + i, left);
      up = hn::Mul(up, hn::Mul(a, sigmoid));
      sv::store_part(hn::Mul(up, w), d, dx + i, left);
    }
    if (dweight) sv::store_part(hn::MulAdd(up, h, sv::load_part(d, dweight + i, left)), d, dweight + i, left);
    if (dbias) sv::store_part(hn::Add(up, sv::load_part(d, dbias + i, left)), d, dbias + i, left);
    // Lanes past the end hold up = 0, so that they add nothing although h = -mean scale there.
    const VecF g = hn::Mul(up, w);
    if constexpr (kCentre) sum_g = hn::Add(sum_g, g);
    sum_gh = hn::MulAdd(g, h, sum_gh);
  }
  const VecF mean_g = hn::Set(d, kCentre ? sv::sum_lanes(d, sum_g) / static_cast<float>(p.width) : 0.0f);
  const VecF pull = hn::Set(d, sv::sum_lanes(d, sum_gh) * p.inverse_count);

  for (int64_t i = 0; i < p.width; i += step) {
    const int64_t left = p.width - i;
    const VecF h = hn::Mul(hn::Sub(sv::load_part(d, u + i, left), mean), scale);
    const VecF g = kGating == Gating::after ? sv::load_part(d, dx + i, left)
                                            : hn::Mul(sv::load_part(d, dy + i, left), weight_at(p, d, i));
    VecF du = hn::Mul(scale, hn::NegMulAdd(h, pull, hn::Sub(g, mean_g)));
    if (p.dsum) du = hn::Add(du, sv::load_part(d, p.dsum + row * p.width + i, left));
    if constexpr (kGating == Gating::before) {
      const VecF a = sv::load_part(d, gate + i, left), sigmoid = sv::load_part(d, dgate + i, left);
      const VecF slope = hn::Mul(sigmoid, hn::MulAdd(a, hn::Sub(one, sigmoid), one));
      sv::store_part(hn::Mul(hn::Mul(du, sv::load_part(d, x + i, left)), slope), d, dgate + i, left);
      du = hn::Mul(du, hn::Mul(a, sigmoid));
    }
    sv::store_part(du, d, dx + i, left);
  }
}

// Calls body(row, block) for the rows of blocks [begin, end).
template <class Body>
void for_rows(const NormProblem& p, int64_t begin, int64_t end, const Body& body) {
  for (int64_t block = begin; block < end; ++block) {
    const int64_t last = std::min(p.rows, (block + 1) * p.block_rows);
    for (int64_t row = block * p.block_rows; row < last; ++row) body(row, block);
  }
}

void norm_forward(const NormProblem& p, int64_t begin, int64_t end) {
  for_rows(p, begin, end, [&](int64_t row, int64_t) {
    if (p.gating == Gating::before) return forward_row<Gating::before, false>(p, row);
    if (p.gating == Gating::after) return forward_row<Gating::after, false>(p, row);
    if (p.centre) return forward_row<Gating::none, true>(p, row);
    forward_row<Gating::none, false>(p, row);
  });
}

void norm_backward(const NormProblem& p, int64_t begin, int64_t end) {
  for (float* partial : {p.dweight_partial, p.dbias_partial})
    if (partial) std::fill(partial + begin * p.width, partial + end * p.width, 0.0f);
  for_rows(p, begin, end, [&](int64_t row, int64_t block) {
    float* dweight = p.dweight_partial ? p.dweight_partial + block * p.width : nullptr;
    float* dbias = p.dbias_partial ? p.dbias_partial + block * p.width : nullptr;
    if (p.gating == Gating::before) return backward_row<Gating::before, false>(p, row, dweight, dbias);
    if (p.gating == Gating::after) return backward_row<Gating::after, false>(p, row, dweight, dbias);
    if (p.centre) return backward_row<Gating::none, true>(p, row, dweight, dbias);
    backward_row<Gating::none, false>(p, row, dweight, dbias);
  });
}

void norm_sum_partials(const float* partial, int64_t blocks, int64_t width, float* out) {
  sv::sum_rows(partial, blocks, width, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(norm_forward, (const NormProblem& p, int64_t begin, int64_t end), (p, begin, end))
WEFT_SIMD_DISPATCH(norm_backward, (const NormProblem& p, int64_t begin, int64_t end), (p, begin, end))
WEFT_SIMD_DISPATCH(norm_sum_partials, (const float* partial, int64_t blocks, int64_t width, float* out),
                   (partial, blocks, width, out))
}  // namespace weft::kernels
#endif
