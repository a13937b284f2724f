// The short causal convolution on the CPU. A vector of channels walks through the tokens of a tile with the
// last inputs in registers; a tile first reads the inputs before it.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/conv/kernel_cpu.cc"
#include "ops/simd/targets.h"

#include <algorithm>

#include "hwy/foreach_target.h"  // before everything that is compiled once for each target

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"
#include "ops/conv/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Tag = hn::ScalableTag<float>;
using Vector = hn::Vec<Tag>;

// A vector of channels: how many of its lanes exist, and access to them.
struct Lanes {
  int64_t channel;
  hn::Mask<Tag> mask;
  Vector load(const float* row) const { return hn::MaskedLoad(mask, Tag(), row + channel); }
  void store(Vector v, float* row) const { hn::BlendedStore(v, mask, Tag(), row + channel); }
};

// One sequence: its rows of inputs, numbered from -(W - 1) on, the first of them in `before`.
struct Sequence {
  const ShortConvProblem& p;
  int64_t b;
  bool starts(int64_t t) const { return p.starts && t >= 0 && p.starts[b * p.tokens + t]; }
  Vector input(int64_t t, const Lanes& lanes) const {
    if (t >= 0) return lanes.load(p.x + b * p.x_batch + t * p.x_token);
    const int64_t row = p.width - 1 + t;
    if (!p.before || row < 0) return hn::Zero(Tag());
    return lanes.load(p.before + (b * (p.width - 1) + row) * p.channels);
  }
};

// The last kWidth inputs, oldest first; kWidth is the filter's width or more, then the oldest taps are zero.
template <int kWidth>
struct Window {
  Vector x[kWidth];
  HWY_INLINE void clear() {
#pragma GCC unroll 16
    for (int j = 0; j < kWidth; ++j) x[j] = hn::Zero(Tag());
  }
  HWY_INLINE void push(Vector next) {
#pragma GCC unroll 16
    for (int j = 0; j + 1 < kWidth; ++j) x[j] = x[j + 1];
    x[kWidth - 1] = next;
  }
};

template <int kWidth>
HWY_INLINE void load_taps(const ShortConvProblem& p, const Lanes& lanes, Vector* taps) {
  const int unused = kWidth - static_cast<int>(p.width);
#pragma GCC unroll 16
  for (int j = 0; j < kWidth; ++j)
    taps[j] = j < unused ? hn::Zero(Tag()) : lanes.load(p.taps + (j - unused) * p.channels);
}

template <int kWidth>
HWY_INLINE Vector convolve(const Window<kWidth>& window, const Vector* taps, Vector bias) {
  auto sum = bias;
#pragma GCC unroll 16
  for (int j = 0; j < kWidth; ++j) sum = hn::MulAdd(taps[j], window.x[j], sum);
  return sum;
}

// 1 / (1 + exp(-x)); exp's argument is kept where it and its reciprocal are finite.
HWY_INLINE Vector sigmoid(Vector x) {
  const Tag d;
  const auto bounded = hn::Min(hn::Max(hn::Neg(x), hn::Set(d, -87.0f)), hn::Set(d, 87.0f));
  return hn::Div(hn::Set(d, 1.0f), hn::Add(hn::Set(d, 1.0f), hn::Exp(d, bounded)));
}

// The window as it is when token `first` is about to be pushed.
template <int kWidth>
HWY_INLINE void fill_window(const Sequence& s, int64_t first, const Lanes& lanes, Window<kWidth>& window) {
  window.clear();
  for (int64_t t = first - (s.p.width - 1); t < first; ++t) {
    if (s.starts(t)) window.clear();
    window.push(s.input(t, lanes));
  }
}

template <int kWidth>
void forward_lanes(const Sequence& s, int64_t first, int64_t end, const Lanes& lanes) {
  const auto& p = s.p;
  Vector taps[kWidth];
  load_taps<kWidth>(p, lanes, taps);
  const auto bias = p.bias ? lanes.load(p.bias) : hn::Zero(Tag());
  Window<kWidth> window;
  fill_window(s, first, lanes, window);
  const float* x = p.x + s.b * p.x_batch + first * p.x_token;
  float* y = p.y + (s.b * p.tokens + first) * p.channels;
  for (int64_t t = first; t < end; ++t, x += p.x_token, y += p.channels) {
    if (s.starts(t)) window.clear();
    window.push(lanes.load(x));
    const auto sum = convolve(window, taps, bias);
    lanes.store(p.silu ? hn::Mul(sum, sigmoid(sum)) : sum, y);
  }
}

// Gradients of inputs that still miss the contribution of tokens to come: pending[j] is that of input t -
// (kWidth - 1) + j at token t. `done` stores it where it belongs.
template <int kWidth>
struct PendingInputs {
  Window<kWidth> gradient;
  const Sequence& s;
  const Lanes& lanes;
  int64_t first, end;  // the walk; inputs outside belong to others, but for those before the first token
  int64_t document;    // first input of the document

  HWY_INLINE void store(int64_t t, Vector v) const {
    if (t < document || t >= end) return;
    const auto& p = s.p;
    if (t >= first && p.dx) lanes.store(v, p.dx + (s.b * p.tokens + t) * p.channels);
    if (t < 0 && first == 0 && p.dbefore)
      lanes.store(v, p.dbefore + (s.b * (p.width - 1) + p.width - 1 + t) * p.channels);
  }
  // No token from t on sees the inputs before t.
  HWY_INLINE void flush(int64_t t) {
#pragma GCC unroll 16
    for (int j = 1; j < kWidth; ++j) store(t - kWidth + j, gradient.x[j]);
    gradient.clear();
    document = t;
  }
};

// d act(sum) / d sum
HWY_INLINE Vector activation_slope(Vector sum) {
  const auto gate = sigmoid(sum), one = hn::Set(Tag(), 1.0f);
  return hn::Mul(gate, hn::MulAdd(sum, hn::Sub(one, gate), one));
}

template <int kWidth>
void backward_lanes(const Sequence& s, int64_t first, int64_t end, const Lanes& lanes, float* dtaps,
                    bool add) {
  const auto& p = s.p;
  Vector taps[kWidth], dtap[kWidth];
  load_taps<kWidth>(p, lanes, taps);
  const auto bias = p.bias ? lanes.load(p.bias) : hn::Zero(Tag());
  auto dbias = hn::Zero(Tag());
#pragma GCC unroll 16
  for (int j = 0; j < kWidth; ++j) dtap[j] = hn::Zero(Tag());
  Window<kWidth> window;
  fill_window(s, first, lanes, window);
  PendingInputs<kWidth> pending{{}, s, lanes, first, end, first == 0 ? 1 - p.width : first};
  pending.gradient.clear();
  // The tokens just behind the walk still see inputs of it.
  const int64_t last = std::min(end + p.width - 1, p.tokens);
  int64_t t = first;
  for (; t < last; ++t) {
    if (s.starts(t)) {
      if (t >= end) break;
      pending.flush(t);
      window.clear();
    }
    window.push(s.input(t, lanes));
    auto dsum = lanes.load(p.dy + (s.b * p.tokens + t) * p.channels);
    if (p.silu) dsum = hn::Mul(dsum, activation_slope(convolve(window, taps, bias)));
    pending.gradient.push(hn::Zero(Tag()));
    const auto own = t < end ? dsum : hn::Zero(Tag());
    dbias = hn::Add(dbias, own);
#pragma GCC unroll 16
    for (int j = 0; j < kWidth; ++j) {
      dtap[j] = hn::MulAdd(own, window.x[j], dtap[j]);
      pending.gradient.x[j] = hn::MulAdd(taps[j], dsum, pending.gradient.x[j]);
    }
    pending.store(t - kWidth + 1, pending.gradient.x[0]);
  }
  pending.flush(t);
  if (!dtaps) return;
  const auto store = [&](Vector v, float* row)
                         HWY_ATTR { lanes.store(add ? hn::Add(lanes.load(row), v) : v, row); };
  const int unused = kWidth - static_cast<int>(p.width);
#pragma GCC unroll 16
  for (int j = 0; j < kWidth; ++j)
    if (j >= unused) store(dtap[j], dtaps + (j - unused) * p.channels);
  store(dbias, dtaps + p.width * p.channels);
}

// Calls body.operator()<kWidth>() with the smallest compiled width that holds the filter.
template <class Body>
void with_width(int64_t width, const Body& body) {
  if (width == 2)
    body.template operator()<2>();
  else if (width == 3)
    body.template operator()<3>();
  else if (width == 4)
    body.template operator()<4>();
  else if (width <= 8)
    body.template operator()<8>();
  else
    body.template operator()<16>();
}

// Tokens that a vector of channels walks through before the next vector does: few, because every token is in
// another page and a processor foresees only some 32 streams.
constexpr int64_t kWalk = 16;

// Calls body(sequence, first, end, lanes, task) for every walk of every tile.
template <class Body>
void for_walks(const ShortConvProblem& p, int64_t begin, int64_t end, const Body& body) {
  const int64_t lanes = hn::Lanes(Tag());
  for (int64_t task = begin; task < end; ++task) {
    const int64_t tile = task % p.tiles() * p.tile, tile_end = std::min(tile + p.tile, p.tokens);
    for (int64_t first = tile; first < tile_end; first += kWalk)
      for (int64_t channel = 0; channel < p.channels; channel += lanes)
        body(Sequence{p, task / p.tiles()}, first, std::min(first + kWalk, tile_end),
             Lanes{channel, hn::FirstN(Tag(), static_cast<size_t>(p.channels - channel))}, task);
  }
}

void short_conv_forward(const ShortConvProblem& p, int64_t begin, int64_t end) {
  with_width(p.width, [&]<int kWidth>() {
    for_walks(p, begin, end, [](const Sequence& s, int64_t first, int64_t last, const Lanes& lanes, int64_t) {
      forward_lanes<kWidth>(s, first, last, lanes);
    });
  });
}

void short_conv_backward(const ShortConvProblem& p, int64_t begin, int64_t end) {
  with_width(p.width, [&]<int kWidth>() {
    for_walks(p, begin, end,
              [](const Sequence& s, int64_t first, int64_t last, const Lanes& lanes, int64_t task) {
                float* dtaps = s.p.dtaps ? s.p.dtaps + task * (s.p.width + 1) * s.p.channels : nullptr;
                backward_lanes<kWidth>(s, first, last, lanes, dtaps, first % s.p.tile != 0);
              });
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {

WEFT_SIMD_DISPATCH(short_conv_forward, (const ShortConvProblem& p, int64_t begin, int64_t end),
                   (p, begin, end))
WEFT_SIMD_DISPATCH(short_conv_backward, (const ShortConvProblem& p, int64_t begin, int64_t end),
                   (p, begin, end))

}  // namespace weft::kernels
#endif
