// Linear attention with a diagonal plus low rank erase on the CPU, forward and step: token by token on a strip
// of state columns that stays in the first-level cache. README.md says why not in chunks.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear_attention/kernel_cpu_dplr.cc"
#include "ops/simd/targets.h"

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/linear_attention/dplr-inl.h"
#include "ops/linear_attention/kernel_dplr.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {

// Vectors of a strip: recalled, next recalled, value and output of them stay in registers.
#if HWY_TARGET == HWY_AVX3
constexpr int kStripVectors = 4;
#else
constexpr int kStripVectors = 2;
#endif

// Columns [column, column + kVectors * lanes) of the state, at `data` with this row stride.
struct Strip {
  float* data;
  int64_t row, column;
};

// The last vector of a row may be cut off; with `kWhole` it is not, or its rest may be read and written.
template <bool kWhole, class M>
HWY_INLINE VecF load_last(Floats d, M mask, bool last, const float* from) {
  return kWhole || !last ? hn::LoadU(d, from) : hn::MaskedLoad(mask, d, from);
}
template <bool kWhole, class M>
HWY_INLINE void store_last(VecF x, Floats d, M mask, bool last, float* to) {
  if (kWhole || !last)
    hn::StoreU(x, d, to);
  else
    hn::BlendedStore(x, mask, d, to);
}

// Tokens whose rows are copied together: in the tensors the rows of one head lie a power of two apart and would
// push each other out of the cache while strip after strip reads them.
constexpr int64_t kBlock = 8;

// [kBlock, kRowKinds, K]; `next_a` reads for the token after.
constexpr int kRowKinds = 5;
struct Rows {
  const float *q, *k, *b, *decay, *next_a;
  Rows(const DplrProblem& p, const float* rows, int64_t r)
      : q(rows + r * kRowKinds * p.key_width),
        k(q + p.key_width),
        b(k + p.key_width),
        decay(b + p.key_width),
        next_a(decay + p.key_width) {}
};

void load_rows(const DplrProblem& p, const Chunk& c, float* rows) {
  const int64_t width = p.key_width;
  for (int64_t r = 0; r < c.rows; ++r, rows += kRowKinds * width) {
    const int64_t t = c.begin + r;
    scale_row(width, p.scale, p.q.at(c.batch, t, c.key_head), rows);
    scale_row(width, 1, p.k.at(c.batch, t, c.key_head), rows + width);
    scale_row(width, 1, erase_row(p, p.erase_write, c, t), rows + 2 * width);
    decay_factors(p, c, t, rows + 3 * width);
    scale_row(width, 1, erase_row(p, p.erase_read, c, std::min(t + 1, p.tokens - 1)), rows + 4 * width);
  }
}

// recalled = what `a` reads from the strip; the parameters are those of run_strip.
template <int kVectors, bool kWhole, bool kScratch>
HWY_INLINE void recall(const DplrProblem& p, const float* a, const Strip s, float* recalled) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto mask = hn::FirstN(d, static_cast<size_t>(p.value_width - s.column - (kVectors - 1) * lanes));
  VecF sum[kVectors];
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) sum[j] = hn::Zero(d);
  for (int64_t i = 0; i < p.key_width; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j)
      sum[j] = hn::MulAdd(
          hn::Set(d, a[i]),
          load_last < kWhole || kScratch > (d, mask, j + 1 == kVectors, s.data + i * s.row + j * lanes),
          sum[j]);
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) hn::StoreU(sum[j], d, recalled + j * lanes);
}

// At most kBlock tokens on one strip. One sweep over the strip is a token: it makes the new state, reads it for
// y and recalls from it for the next token, which is left in `carried`, where it was found for the first.
// `kWhole`: all columns of its last vector exist; `kScratch`: its rows may be read and written as if they did, and
// a token comes after. `ahead`, if not null: tokens whose
// inputs should come closer meanwhile.
template <int kVectors, bool kWhole, bool kScratch>
HWY_INLINE void run_strip(const DplrProblem& p, const Chunk& c, const Chunk* ahead, const float* rows,
                          const Strip s, float* carried) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t width = p.key_width;
  const auto mask = hn::FirstN(d, static_cast<size_t>(p.value_width - s.column - (kVectors - 1) * lanes));
  float* const data = s.data;
  const int64_t row = s.row;
  VecF recalled[kVectors], next[kVectors], value[kVectors], read[kVectors];
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) next[j] = hn::LoadU(d, carried + j * lanes);
  for (int64_t r = 0; r < c.rows; ++r) {
    const int64_t t = c.begin + r,
                  at = ((c.batch * p.tokens + t) * p.heads + c.head) * p.value_width + s.column;
    const Rows x(p, rows, r);
    if (ahead) prefetch_token(p, *ahead, r);
    const float* v = p.v.at(c.batch, t, c.head) + s.column;
    const auto write = hn::Set(d, p.write.data ? *p.write.at(c.batch, t, c.head) : 1);
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j) {
      recalled[j] = next[j];
      if (p.recalled)
        store_last<kWhole>(recalled[j], d, mask, j + 1 == kVectors, p.recalled + at + j * lanes);
      value[j] = hn::Mul(write, load_last<kWhole>(d, mask, j + 1 == kVectors, v + j * lanes));
      next[j] = read[j] = hn::Zero(d);
    }
    for (int64_t i = 0; i < width; ++i) {
      const auto decay_i = hn::Set(d, x.decay[i]), b_i = hn::Set(d, x.b[i]), k_i = hn::Set(d, x.k[i]);
      const auto q_i = hn::Set(d, x.q[i]), a_i = hn::Set(d, x.next_a[i]);
#pragma GCC unroll 4
      for (int j = 0; j < kVectors; ++j) {
        float* to = data + i * row + j * lanes;
        auto state = hn::Mul(decay_i, load_last < kWhole || kScratch > (d, mask, j + 1 == kVectors, to));
        state = hn::MulAdd(k_i, value[j], hn::MulAdd(b_i, recalled[j], state));
        store_last<kWhole || kScratch>(state, d, mask, j + 1 == kVectors, to);
        read[j] = hn::MulAdd(q_i, state, read[j]);
        if (kScratch) next[j] = hn::MulAdd(a_i, state, next[j]);
      }
    }
#pragma GCC unroll 4
    for (int j = 0; j < kVectors; ++j)
      store_last<kWhole>(read[j], d, mask, j + 1 == kVectors, p.y + at + j * lanes);
  }
#pragma GCC unroll 4
  for (int j = 0; j < kVectors; ++j) hn::StoreU(next[j], d, carried + j * lanes);
}

// Calls body.operator()<vectors, whole>() with as many vectors as are left of the row from `column` on.
template <class Body>
HWY_INLINE void with_vectors(const DplrProblem& p, int64_t column, const Body& body) {
  const int64_t lanes = hn::Lanes(Floats()), left = p.value_width - column;
  if (left >= kStripVectors * lanes)
    body.template operator()<kStripVectors, true>();
  else if (kStripVectors > 3 && left > 3 * lanes)
    body.template operator()<kStripVectors, false>();
  else if (kStripVectors > 2 && left > 2 * lanes)
    body.template operator()<3, false>();
  else if (left > lanes)
    body.template operator()<2, false>();
  else
    body.template operator()<1, false>();
}

// In scratch the state lies strip after strip, each K rows of kStripVectors vectors: strips of a wide state as
// it is outside would share few cache sets.
inline int64_t strip_row() { return kStripVectors * static_cast<int64_t>(hn::Lanes(Floats())); }

void load_strips(const DplrProblem& p, const float* from, float* strips) {
  const int64_t row = strip_row();
  for (int64_t column = 0; column < p.value_width; column += row, strips += p.key_width * row)
    for (int64_t i = 0; i < p.key_width; ++i) {
      const int64_t count = std::min(row, p.value_width - column);
      const float* source = from + i * p.value_width + column;
      std::copy(source, source + count, strips + i * row);
      fill_row(row - count, 0, strips + i * row + count);
    }
}

void store_strips(const DplrProblem& p, const float* strips, float* to) {
  const int64_t row = strip_row();
  for (int64_t column = 0; column < p.value_width; column += row, strips += p.key_width * row)
    for (int64_t i = 0; i < p.key_width; ++i)
      std::copy(strips + i * row, strips + i * row + std::min(row, p.value_width - column),
                to + i * p.value_width + column);
}

// The state of one head in scratch.
struct HeadState {
  float *strips, *carried;  // and [V] what the next token recalls
  int64_t columns;          // V rounded up to whole strips
  int64_t floats;

  HeadState(const DplrProblem& p, float* memory)
      : strips(memory), columns((p.value_width + strip_row() - 1) / strip_row() * strip_row()) {
    carried = memory + columns * p.key_width;
    floats = columns * (p.key_width + 1);
  }
  void clear() const { fill_row(floats, 0, strips); }
  Strip strip(const DplrProblem& p, int64_t column) const {
    return {strips + column * p.key_width, strip_row(), column};
  }
};

void load_state(const DplrProblem& p, int64_t task, const HeadState& s) {
  s.clear();
  if (!p.initial_state) return;
  load_strips(p, p.initial_state + task * p.key_width * p.value_width, s.strips);
  if (p.tokens == 0) return;
  const Chunk first = chunk_at(p, task, 0, true);
  for (int64_t column = 0; column < s.columns; column += strip_row())
    with_vectors(p, column, [&]<int kVectors, bool kWhole>() HWY_ATTR {
      recall<kVectors, kWhole, true>(p, erase_row(p, p.erase_read, first, 0), s.strip(p, column),
                                     s.carried + column);
    });
}

// The tokens of a chunk from `done` on, at most kBlock.
Chunk block_of(Chunk c, int64_t done) {
  c.begin += done, c.rows = std::min(kBlock, c.rows - done);
  return c;
}

// `next` is the chunk that comes after this one.
void run_chunk(const DplrProblem& p, const Chunk& c, const Chunk& next, float* rows, const HeadState& s) {
  for (int64_t done = 0; done < c.rows; done += kBlock) {
    const Chunk block = block_of(c, done);
    const Chunk ahead = done + kBlock < c.rows ? block_of(c, done + kBlock) : block_of(next, 0);
    load_rows(p, block, rows);
    for (int64_t column = 0; column < s.columns; column += strip_row())
      with_vectors(p, column, [&]<int kVectors, bool kWhole>() HWY_ATTR {
        run_strip<kVectors, kWhole, true>(p, block, column == 0 ? &ahead : nullptr, rows, s.strip(p, column),
                                          s.carried + column);
      });
  }
}

void dplr_forward(const DplrProblem& p, float* scratch, int64_t begin, int64_t end) {
  const HeadState state(p, scratch);
  float* rows = scratch + state.floats;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunks = chunk_count(p, task);
    load_state(p, task, state);
    for (int64_t index = 0; index < chunks; ++index) {
      const Chunk c = chunk_at(p, task, index, index == 0);
      if (c.empty) state.clear();
      if (p.states) store_strips(p, state.strips, saved_state(p, task, index));
      run_chunk(p, c, index + 1 < chunks ? chunk_at(p, task, index + 1, false) : c, rows, state);
    }
    store_strips(p, state.strips, p.state + task * p.key_width * p.value_width);
  }
}

void dplr_step(const DplrProblem& p, float* rows, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / p.heads, h = task % p.heads;
    const Chunk c{b, h, h / (p.heads / p.key_heads), 0, 1, false};
    float* state = p.state + task * p.key_width * p.value_width;
    if (p.fresh && p.fresh[b]) fill_row(p.key_width * p.value_width, 0, state);
    load_rows(p, c, rows);
    for (int64_t column = 0; column < p.value_width; column += strip_row())
      with_vectors(p, column, [&]<int kVectors, bool kWhole>() HWY_ATTR {
        const Strip s{state + column, p.value_width, column};
        HWY_ALIGN float recalled[kVectors * hn::MaxLanes(Floats())];
        recall<kVectors, kWhole, false>(p, erase_row(p, p.erase_read, c, 0), s, recalled);
        run_strip<kVectors, kWhole, false>(p, c, nullptr, rows, s, recalled);
      });
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {

int64_t dplr_forward_scratch(const DplrProblem& p) {
  constexpr int64_t kWidestStrip = 64;
  const int64_t columns = (p.value_width + kWidestStrip - 1) / kWidestStrip * kWidestStrip;
  return (p.key_width + 1) * columns + HWY_NAMESPACE::kBlock * dplr_step_scratch(p);
}
int64_t dplr_step_scratch(const DplrProblem& p) { return HWY_NAMESPACE::kRowKinds * p.key_width; }

WEFT_SIMD_DISPATCH(dplr_forward, (const DplrProblem& p, float* scratch, int64_t begin, int64_t end),
                   (p, scratch, begin, end))
WEFT_SIMD_DISPATCH(dplr_step, (const DplrProblem& p, float* rows, int64_t begin, int64_t end),
                   (p, rows, begin, end))

}  // namespace weft::kernels
#endif
