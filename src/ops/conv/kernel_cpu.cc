// The short causal convolution on the CPU. A block of channels walks through the tokens of a tile, four at a time;
// rows of inputs are found by a list of pointers, so that states, zeros before a document and rows widened from 16
// bits look alike to the inner loops.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/conv/kernel_cpu.cc"
#include "ops/simd/targets.h"

#include <algorithm>
#include <cstring>

#include "hwy/foreach_target.h"  // before everything that is compiled once for each target

#include "hwy/highway.h"
#include "ops/conv/kernel.h"
#include "ops/simd/exp-inl.h"
#include "ops/simd/half-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace sv = simd::HWY_NAMESPACE;
using simd::FloatType;

using Tag = hn::ScalableTag<float>;
using Vector = hn::Vec<Tag>;

constexpr int kGroup = kShortConvGroup;
constexpr int kMaxWidth = 16;
constexpr int kMaxRows = kMaxWidth - 1 + kGroup;  // that a group of tokens sees
constexpr int64_t kMaxBlock = short_conv_block(2);
// Between rows of scratch: a cache line more than a block, so that rows do not compete for the same lines.
constexpr int64_t stride_of(int64_t width) { return short_conv_block(width) + 16; }

// Room for the rows of a task.
constexpr int64_t kRingFloats = 32 * stride_of(kMaxWidth);  // the longest ring; the widest rings are shorter
constexpr int64_t kTapFloats = 14 * stride_of(13);          // taps and a bias; most for this width
constexpr int64_t kGroupFloats = kGroup * stride_of(2);

alignas(64) constexpr float kZeros[kMaxBlock] = {};

// A vector of channels that all exist, and the last one.
struct Whole {
  HWY_INLINE Vector load(const float* from) const { return hn::LoadU(Tag(), from); }
  HWY_INLINE void store(Vector x, float* to) const { hn::StoreU(x, Tag(), to); }
};
struct Part {
  hn::Mask<Tag> mask;
  HWY_INLINE Vector load(const float* from) const { return hn::MaskedLoad(mask, Tag(), from); }
  HWY_INLINE void store(Vector x, float* to) const { hn::BlendedStore(x, mask, Tag(), to); }
};

// Calls body(c, lanes) for every vector of `count` channels.
template <class Body>
HWY_INLINE void for_lanes(int64_t count, const Body& body) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(Tag()));
  int64_t c = 0;
  for (; c + lanes <= count; c += lanes) body(c, Whole());
  if (c < count) body(c, Part{hn::FirstN(Tag(), static_cast<size_t>(count - c))});
}

// The filter of a block of channels.
struct Filter {
  const float* taps;  // [W, stride]
  const float* bias;  // [count]
  int64_t stride, width, count;
};

// 1 / x for x in [1, 2^126], relative error about 1e-7: cheaper than a division of 16 lanes.
HWY_INLINE Vector reciprocal(Vector x) {
#if HWY_TARGET == HWY_SCALAR
  return hn::Div(hn::Set(Tag(), 1.0f), x);
#else
  const auto guess = hn::ApproximateReciprocal(x);
  return hn::Mul(guess, hn::NegMulAdd(x, guess, hn::Set(Tag(), 2.0f)));
#endif
}

// The sigmoid of x and what is missing to 1, both to their last digits but for the rounding of x log2(e), which moves
// x sigmoid(x) by less than 4e-8, and by x 1e-7 of itself.
struct Gate {
  Vector open, shut;
};
HWY_INLINE Gate gate_of(Vector x) {
  const Tag d;
  const auto power = sv::exp2(d, hn::Mul(x, hn::Set(d, -1.44269504f)));
  const auto open = reciprocal(hn::Add(hn::Set(d, 1.0f), power));
  return {open, hn::Mul(power, open)};
}

// sums[i] = bias + sum_j taps[j] rows[i + j] at channel c. The usual widths are unrolled; 0 stands for any.
template <int kWidth, int kTokens, class Lanes>
HWY_INLINE void sum_taps(const Filter& f, const float* const* rows, int64_t c, const Lanes& lanes,
                         Vector* sums) {
  const int64_t width = kWidth == 0 ? f.width : kWidth;
  const auto bias = lanes.load(f.bias + c);
  Vector x[kTokens];
#pragma GCC unroll 4
  for (int i = 0; i < kTokens; ++i) {
    sums[i] = bias;
    if (i + 1 < kTokens) x[i] = lanes.load(rows[i] + c);
  }
#pragma GCC unroll 4
  for (int64_t j = 0; j < width; ++j) {
    x[kTokens - 1] = lanes.load(rows[j + kTokens - 1] + c);
    const auto tap = lanes.load(f.taps + j * f.stride + c);
#pragma GCC unroll 4
    for (int i = 0; i < kTokens; ++i) {
      sums[i] = hn::MulAdd(tap, x[i], sums[i]);
      if (i + 1 < kTokens) x[i] = x[i + 1];
    }
  }
}

// to[i] = act(sums[i]) for kTokens rows.
template <int kWidth, int kTokens, bool kSilu>
void convolve(const Filter& f, const float* const* rows, float* const* to) {
  for_lanes(f.count, [&](int64_t c, const auto& lanes) HWY_ATTR {
    Vector sums[kTokens];
    sum_taps<kWidth, kTokens>(f, rows, c, lanes, sums);
#pragma GCC unroll 4
    for (int i = 0; i < kTokens; ++i) {
      const auto y = kSilu ? hn::Mul(sums[i], gate_of(sums[i]).open) : sums[i];
      lanes.store(y, to[i] + c);
    }
  });
}

// to[i] = dy[i] d silu(sums[i]) / d sums[i]; may run in place.
template <int kWidth, int kTokens>
void multiply_slopes(const Filter& f, const float* const* rows, const float* const* dy, float* const* to) {
  const auto one = hn::Set(Tag(), 1.0f);
  for_lanes(f.count, [&](int64_t c, const auto& lanes) HWY_ATTR {
    Vector sums[kTokens];
    sum_taps<kWidth, kTokens>(f, rows, c, lanes, sums);
#pragma GCC unroll 4
    for (int i = 0; i < kTokens; ++i) {
      const auto gate = gate_of(sums[i]);
      const auto slope = hn::Mul(gate.open, hn::MulAdd(sums[i], gate.shut, one));
      lanes.store(hn::Mul(lanes.load(dy[i] + c), slope), to[i] + c);
    }
  });
}

// sums [W + 1, stride] += the gradients of taps and bias from kTokens rows of dsum.
template <int kWidth, int kTokens>
void add_tap_gradients(const Filter& f, const float* const* rows, const float* const* dsum, float* sums) {
  const int64_t width = kWidth == 0 ? f.width : kWidth;
  for_lanes(f.count, [&](int64_t c, const auto& lanes) HWY_ATTR {
    Vector d[kTokens], x[kTokens];
    auto all = lanes.load(sums + width * f.stride + c);
#pragma GCC unroll 4
    for (int i = 0; i < kTokens; ++i) {
      d[i] = lanes.load(dsum[i] + c);
      all = hn::Add(all, d[i]);
      if (i + 1 < kTokens) x[i] = lanes.load(rows[i] + c);
    }
    lanes.store(all, sums + width * f.stride + c);
#pragma GCC unroll 4
    for (int64_t j = 0; j < width; ++j) {
      x[kTokens - 1] = lanes.load(rows[j + kTokens - 1] + c);
      auto sum = lanes.load(sums + j * f.stride + c);
#pragma GCC unroll 4
      for (int i = 0; i < kTokens; ++i) {
        sum = hn::MulAdd(d[i], x[i], sum);
        if (i + 1 < kTokens) x[i] = x[i + 1];
      }
      lanes.store(sum, sums + j * f.stride + c);
    }
  });
}

// One task: a block of channels of the tokens [first, end) of sequence b.
struct Task {
  const ShortConvProblem& p;
  int64_t b, tile, channel, count, first, end;

  bool starts(int64_t t) const { return p.starts && t >= 0 && p.starts[b * p.tokens + t]; }
  // Tokens from t on that can be computed together: no document starts behind the first of them.
  int64_t group(int64_t t, int64_t limit) const {
    const int64_t most = std::min<int64_t>(kGroup, limit - t);
    int64_t n = 1;
    while (n < most && !starts(t + n)) ++n;
    return n == kGroup ? n : 1;
  }
  // A row of a tensor [B, T, C] of the problem's type.
  template <class Byte>
  Byte* row(Byte* data, int64_t t) const {
    return data + ((b * p.tokens + t) * p.channels + channel) * simd::bytes_of(p.type);
  }
};

Task task_of(const ShortConvProblem& p, int64_t index) {
  const int64_t block = index % p.blocks(), tile = index / p.blocks(),
                channel = block * short_conv_block(p.width);
  const int64_t first = tile % p.tiles() * p.tile;
  return {p,
          tile / p.tiles(),
          tile,
          channel,
          std::min(short_conv_block(p.width), p.channels - channel),
          first,
          std::min(first + p.tile, p.tokens)};
}

// taps [W, stride] = the weight of a block, transposed. A step spends much of its time here.
void load_taps(const ShortConvProblem& p, int64_t channel, int64_t count, float* taps) {
  const float* weight = p.weight + channel * p.width;
  const int64_t stride = stride_of(p.width), lanes = hn::Lanes(Tag());
  int64_t c = 0;
  if (p.width == 4)
    for (; c + lanes <= count; c += lanes) {
      Vector rows[4];
      hn::LoadInterleaved4(Tag(), weight + c * 4, rows[0], rows[1], rows[2], rows[3]);
      for (int64_t j = 0; j < 4; ++j) hn::StoreU(rows[j], Tag(), taps + j * stride + c);
    }
  for (; c < count; ++c)
    for (int64_t j = 0; j < p.width; ++j) taps[j * stride + c] = weight[c * p.width + j];
}

// The inputs of a task as rows of fp32.
class Inputs {
 public:
  Inputs(const Task& task, float* ring) : task_(task), ring_(ring) {
    const int64_t oldest = task.first - (task.p.width - 1);
    std::fill_n(held_, 32, oldest - 1);
    document_ = 1 - task.p.width;
    for (int64_t t = oldest; t < task.first; ++t)
      if (task.starts(t)) document_ = t;
  }
  // Inputs before t are not seen any more.
  void begin_document(int64_t t) { document_ = t; }

  const float* row(int64_t t) {
    const auto& p = task_.p;
    if (t < document_) return kZeros;
    if (t < 0) {
      const int64_t at = task_.b * (p.width - 1) + p.width - 1 + t;
      return p.before ? p.before + at * p.channels + task_.channel : kZeros;
    }
    const auto* from = static_cast<const char*>(p.x) +
                       (task_.b * p.x_batch + t * p.x_token + task_.channel) * simd::bytes_of(p.type);
    if (p.type == FloatType::fp32) return reinterpret_cast<const float*>(from);
    const int64_t slot = t & (short_conv_ring(p.width) - 1);
    float* wide = ring_ + slot * stride_of(p.width);
    if (held_[slot] != t) sv::widen_row(p.type, from, task_.count, wide), held_[slot] = t;
    return wide;
  }
  // The rows that `tokens` tokens from t on see.
  void rows(int64_t t, int64_t tokens, const float** rows) {
    for (int64_t i = 0; i < task_.p.width - 1 + tokens; ++i) rows[i] = row(t - (task_.p.width - 1) + i);
  }

 private:
  const Task& task_;
  float* ring_;
  int64_t held_[32], document_;
};

// Rows of y or dx: written in place, or kept until `finish` narrows them.
class Outputs {
 public:
  Outputs(const Task& task, void* data, float* scratch)
      : task_(task), data_(static_cast<char*>(data)), scratch_(scratch) {}
  float* row(int64_t t, int64_t i) const {
    if (task_.p.type == FloatType::fp32) return reinterpret_cast<float*>(task_.row(data_, t));
    return scratch_ + i * stride_of(task_.p.width);
  }
  void finish(int64_t t, int64_t n) const {
    if (task_.p.type == FloatType::fp32) return;
    for (int64_t i = 0; i < n; ++i)
      sv::narrow_row(task_.p.type, row(t, i), task_.count, task_.row(data_, t + i));
  }

 private:
  const Task& task_;
  char* data_;
  float* scratch_;
};

template <int kWidth>
void convolve_tokens(const Filter& f, bool silu, int64_t n, const float* const* rows, float* const* to) {
  if (n == kGroup)
    silu ? convolve<kWidth, kGroup, true>(f, rows, to) : convolve<kWidth, kGroup, false>(f, rows, to);
  else
    silu ? convolve<0, 1, true>(f, rows, to) : convolve<0, 1, false>(f, rows, to);
}

template <int kWidth>
void forward_task(const Task& task) {
  const auto& p = task.p;
  alignas(64) float taps[kTapFloats], ring[kRingFloats], scratch[kGroupFloats];
  load_taps(p, task.channel, task.count, taps);
  const Filter filter{taps, p.bias ? p.bias + task.channel : kZeros, stride_of(p.width), p.width, task.count};
  Inputs inputs(task, ring);
  const Outputs outputs(task, p.y, scratch);
  const float* rows[kMaxRows];
  float* to[kGroup];
  for (int64_t t = task.first, n; t < task.end; t += n) {
    n = task.group(t, task.end);
    if (task.starts(t)) inputs.begin_document(t);
    inputs.rows(t, n, rows);
    for (int64_t i = 0; i < n; ++i) to[i] = outputs.row(t + i, i);
    convolve_tokens<kWidth>(filter, p.silu, n, rows, to);
    outputs.finish(t, n);
  }
}

// The backward of a task. Tokens are walked through in order; dsum, the gradient before the activation, stays in a
// ring until all inputs that it reaches have their gradient, which is dsum convolved with the reversed filter. It is
// computed W - 1 tokens beyond the end too.
template <int kWidth>
class Backward {
 public:
  explicit Backward(const Task& task)
      : task_(task), p_(task.p), inputs_(task, ring_), outputs_(task, p_.dx, scratch_) {
    load_taps(p_, task.channel, task.count, taps_);
    for (int64_t j = 0; j < width_; ++j)
      std::copy_n(taps_ + j * stride_, task.count, reversed_ + (width_ - 1 - j) * stride_);
    std::fill_n(sums_, (width_ + 1) * stride_, 0.0f);
    next_ = task.first == 0 ? 1 - width_ : task.first;
  }

  void run() {
    const int64_t last = std::min(task_.end + width_ - 1, p_.tokens);
    int64_t t = task_.first;
    for (int64_t n; t < last; t += n) {
      n = task_.group(t, t < task_.end ? task_.end : last);
      if (task_.starts(t)) {
        if (t >= task_.end) break;
        emit(t, t);
        inputs_.begin_document(t);
      }
      add_tokens(t, n);
      emit(t + n - width_ + 1, t + n);
    }
    emit(task_.end, t);
    if (p_.dtaps) store_sums();
  }

 private:
  const void* upstream(int64_t t) const { return task_.row(static_cast<const char*>(p_.dy), t); }
  float* slot(int64_t t) { return dsums_ + (t & (short_conv_ring(width_) - 1)) * stride_; }
  const float* dsum(int64_t t) {
    const bool as_given = !p_.silu && p_.type == FloatType::fp32;
    return as_given ? static_cast<const float*>(upstream(t)) : slot(t);
  }

  // dsum of n tokens, and what they add to the gradients of the taps.
  void add_tokens(int64_t t, int64_t n) {
    const Filter filter{taps_, p_.bias ? p_.bias + task_.channel : kZeros, stride_, width_, task_.count};
    const float *rows[kMaxRows], *dy[kGroup], *d[kGroup];
    float* to[kGroup];
    inputs_.rows(t, n, rows);
    for (int64_t i = 0; i < n; ++i) {
      to[i] = slot(t + i);
      if (p_.type != FloatType::fp32) sv::widen_row(p_.type, upstream(t + i), task_.count, to[i]);
      dy[i] = p_.type == FloatType::fp32 ? static_cast<const float*>(upstream(t + i)) : to[i];
      d[i] = dsum(t + i);
    }
    if (p_.silu)
      n == kGroup ? multiply_slopes<kWidth, kGroup>(filter, rows, dy, to)
                  : multiply_slopes<0, 1>(filter, rows, dy, to);
    if (!p_.dtaps || t >= task_.end) return;
    n == kGroup ? add_tap_gradients<kWidth, kGroup>(filter, rows, d, sums_)
                : add_tap_gradients<0, 1>(filter, rows, d, sums_);
  }

  // Gradients of the inputs from next_ to `end`, from dsum of tokens before `known`; later ones do not see them.
  void emit(int64_t end, int64_t known) {
    const Filter filter{reversed_, kZeros, stride_, width_, task_.count};
    const float* rows[kMaxRows];
    float* to[kGroup];
    end = std::min(end, task_.end);
    for (int64_t n; next_ < end; next_ += n) {
      n = next_ >= 0 && end - next_ >= kGroup ? kGroup : 1;
      if (next_ < 0 ? !p_.dbefore : !p_.dx) continue;
      for (int64_t i = 0; i < width_ - 1 + n; ++i)
        rows[i] = next_ + i >= 0 && next_ + i < known ? dsum(next_ + i) : kZeros;
      for (int64_t i = 0; i < n; ++i)
        to[i] = next_ >= 0 ? outputs_.row(next_ + i, i)
                           : p_.dbefore + (task_.b * (width_ - 1) + width_ - 1 + next_) * p_.channels +
                                 task_.channel;
      convolve_tokens<kWidth>(filter, false, n, rows, to);
      if (next_ >= 0) outputs_.finish(next_, n);
    }
  }

  void store_sums() const {
    float* to = p_.dtaps + task_.tile * (width_ + 1) * p_.channels + task_.channel;
    for (int64_t j = 0; j <= width_; ++j) std::copy_n(sums_ + j * stride_, task_.count, to + j * p_.channels);
  }

  const Task& task_;
  const ShortConvProblem& p_;
  const int64_t width_ = p_.width, stride_ = stride_of(width_);
  int64_t next_;  // first input whose gradient is not written
  alignas(64) float taps_[kTapFloats], reversed_[kTapFloats], sums_[kTapFloats], ring_[kRingFloats],
      dsums_[kRingFloats], scratch_[kGroupFloats];
  Inputs inputs_;
  Outputs outputs_;
};

// The inputs of a step are the state and x.
void step_task(const ShortConvProblem& p, int64_t index) {
  const int64_t b = index / p.blocks(), channel = index % p.blocks() * short_conv_block(p.width),
                count = std::min(short_conv_block(p.width), p.channels - channel),
                size = simd::bytes_of(p.type);
  alignas(64) float taps[kTapFloats], wide[kRingFloats];
  load_taps(p, channel, count, taps);
  const Filter filter{taps, p.bias ? p.bias + channel : kZeros, stride_of(p.width), p.width, count};
  const auto* x = static_cast<const char*>(p.x) + (b * p.x_batch + channel) * size;
  auto* y = static_cast<char*>(p.y) + (b * p.channels + channel) * size;
  const auto state = [&](int64_t j) {
    return static_cast<char*>(p.state) + ((b * (p.width - 1) + j) * p.channels + channel) * size;
  };
  const float* rows[kMaxWidth];
  for (int64_t j = 0; j < p.width; ++j) {
    const char* from = j + 1 < p.width ? state(j) : x;
    float* row = wide + j * stride_of(p.width);
    if (p.type != FloatType::fp32) sv::widen_row(p.type, from, count, row);
    rows[j] = p.type == FloatType::fp32 ? reinterpret_cast<const float*>(from) : row;
  }
  float* to = p.type == FloatType::fp32 ? reinterpret_cast<float*>(y) : wide + p.width * stride_of(p.width);
  convolve_tokens<0>(filter, p.silu, 1, rows, &to);
  if (p.type != FloatType::fp32) sv::narrow_row(p.type, to, count, y);
  for (int64_t j = 0; j + 1 < p.width; ++j)
    std::memcpy(state(j), j + 2 < p.width ? state(j + 1) : x, static_cast<size_t>(count * size));
}

// Calls body.operator()<W>() for the filter's width, W = 0 for those that are not unrolled.
template <class Body>
void with_width(int64_t width, const Body& body) {
  if (width == 2)
    body.template operator()<2>();
  else if (width == 3)
    body.template operator()<3>();
  else if (width == 4)
    body.template operator()<4>();
  else
    body.template operator()<0>();
}

void short_conv_forward(const ShortConvProblem& p, int64_t begin, int64_t end) {
  with_width(p.width, [&]<int kWidth>() {
    for (int64_t task = begin; task < end; ++task) forward_task<kWidth>(task_of(p, task));
  });
}

void short_conv_backward(const ShortConvProblem& p, int64_t begin, int64_t end) {
  with_width(p.width, [&]<int kWidth>() {
    for (int64_t index = begin; index < end; ++index) {
      const auto task = task_of(p, index);
      Backward<kWidth>(task).run();
    }
  });
}

void short_conv_step(const ShortConvProblem& p, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) step_task(p, task);
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
WEFT_SIMD_DISPATCH(short_conv_step, (const ShortConvProblem& p, int64_t begin, int64_t end), (p, begin, end))

}  // namespace weft::kernels
#endif
