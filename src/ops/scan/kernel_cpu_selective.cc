// The selective scan: lanes are channels, the N states of a vector of channels lie in the nearest cache, time
// runs in chunks so that the rows of all vectors of a block are read while their cache lines are near.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/scan/kernel_cpu_selective.cc"
#include "ops/simd/targets.h"
//
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/scan/kernel.h"
#include "ops/simd/aligned.h"
#include "ops/simd/exp-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
namespace fast = simd::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

HWY_INLINE int64_t lanes() { return static_cast<int64_t>(hn::Lanes(D())); }

// The channels of one vector: where they start and how many are real; the others are padding and hold zeros.
struct Columns {
  int64_t channel, count;
  HWY_INLINE V load(const float* row) const {
    if (count == lanes()) return hn::LoadU(D(), row + channel);
    HWY_ALIGN float padded[HWY_MAX_BYTES / sizeof(float)] = {};
    for (int64_t i = 0; i < count; ++i) padded[i] = row[channel + i];
    return hn::Load(D(), padded);
  }
  HWY_INLINE void store(V x, float* row) const {
    if (count == lanes()) return hn::StoreU(x, D(), row + channel);
    HWY_ALIGN float padded[HWY_MAX_BYTES / sizeof(float)];
    hn::Store(x, D(), padded);
    for (int64_t i = 0; i < count; ++i) row[channel + i] = padded[i];
  }
};

// [E, N] rows of one sequence, of which a vector of channels is wanted as [N][lanes], and back.
void gather_states(const float* source, const Columns& columns, int64_t states, float* out) {
  for (int64_t n = 0; n < states; ++n)
    for (int64_t i = 0; i < lanes(); ++i)
      out[n * lanes() + i] = source && i < columns.count ? source[(columns.channel + i) * states + n] : 0.0f;
}

void scatter_states(const float* in, const Columns& columns, int64_t states, float* target) {
  for (int64_t i = 0; i < columns.count; ++i)
    for (int64_t n = 0; n < states; ++n) target[(columns.channel + i) * states + n] = in[n * lanes() + i];
}

void load_rows(const float* source, int64_t stride, const Columns& columns, int64_t states, float* out) {
  for (int64_t n = 0; n < states; ++n) hn::Store(columns.load(source + n * stride), D(), out + n * lanes());
}

void store_rows(const float* in, int64_t stride, const Columns& columns, int64_t states, float* target) {
  for (int64_t n = 0; n < states; ++n) columns.store(hn::Load(D(), in + n * lanes()), target + n * stride);
}

// What one task works on.
struct Block {
  int64_t batch, first, vectors;
  Block(const SelectiveScanProblem& p, int64_t task) {
    const int64_t blocks = scan_tasks(p.channels);
    batch = task / blocks;
    first = task % blocks * kScanBlock;
    const int64_t rest = p.channels - first;
    end = first + (rest < kScanBlock ? rest : kScanBlock);
    vectors = (end - first + lanes() - 1) / lanes();
  }
  int64_t end;
  Columns columns(int64_t vector) const {
    const int64_t channel = first + vector * lanes();
    return {channel, end - channel < lanes() ? end - channel : lanes()};
  }
};

void clear_states(float* h, int64_t states) {
  for (int64_t n = 0; n < states; ++n) hn::Store(hn::Zero(D()), D(), h + n * lanes());
}

// Tokens [t, stop) of one vector of channels; h and a are [N][lanes].
void forward_chunk(const SelectiveScanProblem& p, int64_t batch, const Columns& columns, int64_t t,
                   int64_t stop, const float* HWY_RESTRICT a, float* HWY_RESTRICT h) {
  const D d;
  const int64_t states = p.states, width = lanes();
  const V skip = p.skip ? columns.load(p.skip) : hn::Zero(d);
  for (; t < stop; ++t) {
    const int64_t token = batch * p.tokens + t;
    if (p.starts && p.starts[token]) clear_states(h, states);
    const V delta = columns.load(p.delta + token * p.channels), u = columns.load(p.u + token * p.channels);
    const V input = hn::Mul(delta, u);
    const float *b = p.b + token * states, *c = p.c + token * states;
    V y = hn::Mul(skip, u);
    for (int64_t n = 0; n < states; ++n) {
      const V decay = fast::exp2_falling(d, hn::Mul(delta, hn::Load(d, a + n * width)));
      const V next = hn::MulAdd(decay, hn::Load(d, h + n * width), hn::Mul(input, hn::Set(d, b[n])));
      hn::Store(next, d, h + n * width);
      y = hn::MulAdd(next, hn::Set(d, c[n]), y);
    }
    columns.store(y, p.y + token * p.channels);
  }
}

void selective_scan_forward(const SelectiveScanProblem& p, int64_t begin, int64_t end) {
  const int64_t size = p.states * lanes();  // of the states of one vector
  const int64_t most = kScanBlock / lanes();
  const simd::AlignedFloats memory(static_cast<size_t>(2 * most * size));
  float *const h = memory.get(), *const a = h + most * size;
  for (int64_t task = begin; task < end; ++task) {
    const Block block(p, task);
    const int64_t sequence = block.batch * p.channels * p.states;  // of [B, E, N]
    for (int64_t v = 0; v < block.vectors; ++v) {
      load_rows(p.a_log2, p.channels, block.columns(v), p.states, a + v * size);
      gather_states(p.initial ? p.initial + sequence : nullptr, block.columns(v), p.states, h + v * size);
    }
    for (int64_t t = 0; t < p.tokens; t += kSelectiveChunk) {
      const int64_t stop = t + kSelectiveChunk < p.tokens ? t + kSelectiveChunk : p.tokens;
      float* const saved = p.saved
                               ? p.saved + (block.batch * selective_chunks(p.tokens) + t / kSelectiveChunk) *
                                               p.states * p.channels
                               : nullptr;
      for (int64_t v = 0; v < block.vectors; ++v) {
        if (saved) store_rows(h + v * size, p.channels, block.columns(v), p.states, saved);
        forward_chunk(p, block.batch, block.columns(v), t, stop, a + v * size, h + v * size);
      }
    }
    for (int64_t v = 0; v < block.vectors; ++v)
      scatter_states(h + v * size, block.columns(v), p.states, p.state + sequence);
  }
}

// Scratch of the backward pass. `size` floats hold the N states of one vector of channels.
struct BackwardScratch {
  int64_t size, most;
  simd::AlignedFloats memory;
  float *zeros, *h, *decay, *db, *dc;  // one, chunk + 1, chunk, chunk, chunk times size
  float *a, *dh, *da;                  // one for each vector of the block
  float* dskip;                        // [vectors][lanes]
  explicit BackwardScratch(int64_t states)
      : size(states * lanes()),
        most(kScanBlock / lanes()),
        memory(static_cast<size_t>((4 * kSelectiveChunk + 2 + 3 * most) * size + most * lanes())) {
    zeros = memory.get();
    h = zeros + size;
    decay = h + (kSelectiveChunk + 1) * size;
    db = decay + kSelectiveChunk * size;
    dc = db + kSelectiveChunk * size;
    a = dc + kSelectiveChunk * size;
    dh = a + most * size;
    da = dh + most * size;
    dskip = da + most * size;
  }
};

// States and decays of tokens [t0, t0 + count) of one vector: s.h[i + 1] is the state after token t0 + i.
void recompute_chunk(const SelectiveScanProblem& p, int64_t batch, const Columns& columns, int64_t t0,
                     int64_t count, const float* HWY_RESTRICT a, const BackwardScratch& s) {
  const D d;
  const int64_t states = p.states, width = lanes();
  for (int64_t i = 0; i < count; ++i) {
    const int64_t token = batch * p.tokens + t0 + i;
    const V delta = columns.load(p.delta + token * p.channels);
    const V input = hn::Mul(delta, columns.load(p.u + token * p.channels));
    const float* const b = p.b + token * states;
    const float* const before = p.starts && p.starts[token] ? s.zeros : s.h + i * s.size;
    float *const after = s.h + (i + 1) * s.size, *const decays = s.decay + i * s.size;
    for (int64_t n = 0; n < states; ++n) {
      const V decay = fast::exp2_falling(d, hn::Mul(delta, hn::Load(d, a + n * width)));
      hn::Store(decay, d, decays + n * width);
      hn::Store(hn::MulAdd(decay, hn::Load(d, before + n * width), hn::Mul(input, hn::Set(d, b[n]))), d,
                after + n * width);
    }
  }
}

void backward_chunk(const SelectiveScanGradient& g, int64_t batch, const Columns& columns, int64_t t0,
                    int64_t count, int64_t vector, const BackwardScratch& s) {
  const D d;
  const SelectiveScanProblem& p = g.forward;
  const int64_t states = p.states, width = lanes();
  const float* HWY_RESTRICT a = s.a + vector * s.size;
  float *HWY_RESTRICT dh = s.dh + vector * s.size, *HWY_RESTRICT da = s.da + vector * s.size;
  const V skip = p.skip ? columns.load(p.skip) : hn::Zero(d);
  V dskip = hn::Load(d, s.dskip + vector * width);
  for (int64_t i = count - 1; i >= 0; --i) {
    const int64_t token = batch * p.tokens + t0 + i, row = token * p.channels;
    const bool start = p.starts && p.starts[token];
    const float *const b = p.b + token * states, *const c = p.c + token * states;
    const V u = columns.load(p.u + row), delta = columns.load(p.delta + row), dy = columns.load(g.dy + row);
    const V input = hn::Mul(delta, u);
    const float* const before = start ? s.zeros : s.h + i * s.size;
    const float *const after = s.h + (i + 1) * s.size, *const decays = s.decay + i * s.size;
    float *const db = s.db + i * s.size, *const dc = s.dc + i * s.size;
    V dinput = hn::Zero(d), dexponent = hn::Zero(d);
    for (int64_t n = 0; n < states; ++n) {
      const int64_t at = n * width;
      const V here = hn::MulAdd(dy, hn::Set(d, c[n]), hn::Load(d, dh + at));  // dL / dh_t
      hn::Store(hn::MulAdd(dy, hn::Load(d, after + at), hn::Load(d, dc + at)), d, dc + at);
      hn::Store(hn::MulAdd(here, input, hn::Load(d, db + at)), d, db + at);
      dinput = hn::MulAdd(here, hn::Set(d, b[n]), dinput);
      const V carried = hn::Mul(here, hn::Load(d, decays + at));
      const V exponent = hn::Mul(carried, hn::Load(d, before + at));  // dL / d(delta a)
      dexponent = hn::MulAdd(exponent, hn::Load(d, a + at), dexponent);
      hn::Store(hn::MulAdd(exponent, delta, hn::Load(d, da + at)), d, da + at);
      hn::Store(start ? hn::Zero(d) : carried, d, dh + at);
    }
    columns.store(hn::MulAdd(skip, dy, hn::Mul(delta, dinput)), g.du + row);
    columns.store(hn::MulAdd(u, dinput, hn::Mul(dexponent, hn::Set(d, 0.693147181f))), g.ddelta + row);
    dskip = hn::MulAdd(dy, u, dskip);
  }
  hn::Store(dskip, d, s.dskip + vector * width);
}

// Adds up the lanes of [count][N][lanes] and clears it.
void fold_lanes(float* sums, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = hn::GetLane(hn::SumOfLanes(D(), hn::Load(D(), sums + i * lanes())));
    hn::Store(hn::Zero(D()), D(), sums + i * lanes());
  }
}

void backward_block(const SelectiveScanGradient& g, int64_t task, const BackwardScratch& s) {
  const SelectiveScanProblem& p = g.forward;
  const Block block(p, task);
  const int64_t sequence = block.batch * p.channels * p.states, index = block.first / kScanBlock;
  for (int64_t v = 0; v < block.vectors; ++v) {
    load_rows(p.a_log2, p.channels, block.columns(v), p.states, s.a + v * s.size);
    gather_states(g.dstate + sequence, block.columns(v), p.states, s.dh + v * s.size);
    clear_states(s.da + v * s.size, p.states);
    hn::Store(hn::Zero(D()), D(), s.dskip + v * lanes());
  }
  for (int64_t chunk = selective_chunks(p.tokens) - 1; chunk >= 0; --chunk) {
    const int64_t t0 = chunk * kSelectiveChunk, rest = p.tokens - t0;
    const int64_t count = rest < kSelectiveChunk ? rest : kSelectiveChunk;
    const float* const saved =
        p.saved + (block.batch * selective_chunks(p.tokens) + chunk) * p.states * p.channels;
    for (int64_t v = 0; v < block.vectors; ++v) {
      const Columns columns = block.columns(v);
      load_rows(saved, p.channels, columns, p.states, s.h);
      recompute_chunk(p, block.batch, columns, t0, count, s.a + v * s.size, s);
      backward_chunk(g, block.batch, columns, t0, count, v, s);
    }
    const int64_t out = ((index * p.batch + block.batch) * p.tokens + t0) * p.states;
    fold_lanes(s.db, count * p.states, g.db + out);
    fold_lanes(s.dc, count * p.states, g.dc + out);
  }
  for (int64_t v = 0; v < block.vectors; ++v) {
    scatter_states(s.dh + v * s.size, block.columns(v), p.states, g.dinitial + sequence);
    store_rows(s.da + v * s.size, p.channels, block.columns(v), p.states, g.da + sequence);
    block.columns(v).store(hn::Load(D(), s.dskip + v * lanes()), g.dskip + block.batch * p.channels);
  }
}

void selective_scan_backward(const SelectiveScanGradient& g, int64_t begin, int64_t end) {
  const BackwardScratch scratch(g.forward.states);
  for (int64_t task = begin; task < end; ++task) backward_block(g, task, scratch);
}

// Lanes are states here: with one token there is nothing to keep near, and the state is read as it lies.
void selective_scan_one(const SelectiveScanProblem& p, int64_t begin, int64_t end) {
  const D d;
  const int64_t states = p.states, width = lanes();
  for (int64_t task = begin; task < end; ++task) {
    const Block block(p, task);
    const float *const b = p.b + block.batch * states, *const c = p.c + block.batch * states;
    for (int64_t e = block.first; e < block.end; ++e) {
      const int64_t at = block.batch * p.channels + e;
      const float delta = p.delta[at], input = delta * p.u[at];
      float* const h = p.state + at * states;
      V sum = hn::Zero(d);
      for (int64_t n = 0; n < states; n += width) {
        const auto mask = hn::FirstN(d, static_cast<size_t>(states - n < width ? states - n : width));
        const V decay = fast::exp2_falling(
            d, hn::Mul(hn::Set(d, delta), hn::MaskedLoad(mask, d, p.a_log2 + e * states + n)));
        const V next = hn::MulAdd(decay, hn::MaskedLoad(mask, d, h + n),
                                  hn::Mul(hn::Set(d, input), hn::MaskedLoad(mask, d, b + n)));
        hn::BlendedStore(next, mask, d, h + n);
        sum = hn::MulAdd(next, hn::MaskedLoad(mask, d, c + n), sum);
      }
      p.y[at] = hn::GetLane(hn::SumOfLanes(d, sum)) + (p.skip ? p.skip[e] * p.u[at] : 0.0f);
    }
  }
}

}  // namespace
}  // namespace weft::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {
WEFT_SIMD_DISPATCH(selective_scan_forward, (const SelectiveScanProblem& p, int64_t begin, int64_t end),
                   (p, begin, end))
WEFT_SIMD_DISPATCH(selective_scan_backward, (const SelectiveScanGradient& p, int64_t begin, int64_t end),
                   (p, begin, end))
WEFT_SIMD_DISPATCH(selective_scan_one, (const SelectiveScanProblem& p, int64_t begin, int64_t end),
                   (p, begin, end))
}  // namespace weft::kernels
#endif
