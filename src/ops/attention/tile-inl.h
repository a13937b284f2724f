// What forward and backward of attention share: blocks of rows, which keys they see, loads into scratch.
#if defined(WEFT_OPS_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_OPS_ATTENTION_TILE_INL_H_
#undef WEFT_OPS_ATTENTION_TILE_INL_H_
#else
#define WEFT_OPS_ATTENTION_TILE_INL_H_
#endif

#include <algorithm>
#include <limits>
#include <utility>

#include "hwy/highway.h"
#include "ops/attention/kernel.h"
#include "ops/simd/attention_gemm-inl.h"
#include "ops/simd/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;
namespace sv = simd::HWY_NAMESPACE;
using sv::Floats;
using sv::VecF;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// The caller's scratch, cut up; see attention_scratch for its size.
struct Scratch {
  Scratch(const AttentionProblem& p, float* data) {
    const auto take = [&](int64_t floats) { return std::exchange(data, data + floats); };
    q = take(kQueryBlock * p.key_width);
    dk = take(kKeyBlock * p.key_width);
    out = dv = take(kKeyBlock * p.value_width);
    dout = take(kQueryBlock * p.value_width);
    score = take(kQueryBlock * kKeyBlock);
    dscore = take(kQueryBlock * kKeyBlock);
    lse = take(kQueryBlock);
    delta = take(kQueryBlock);
  }
  float *q, *dk, *dv, *dout;  // rows of the head widths; q is scaled
  float* out;                 // forward, where dv is not needed
  float *score, *dscore;      // [kQueryBlock, kKeyBlock]
  float *lse, *delta;         // [kQueryBlock]
};

// Rows [first, first + count) of one key head, and the widest and narrowest limits among their queries.
struct RowBlock {
  int64_t batch, key_head, first, count;
  int32_t high_min, high_max, low_min, low_max, segment_min, segment_max;

  int64_t token(const AttentionProblem& p, int64_t i) const { return (first + i) / p.group(); }
  int64_t head(const AttentionProblem& p, int64_t i) const {
    return key_head * p.group() + (first + i) % p.group();
  }
  // Of row i in [B, T, H].
  int64_t place(const AttentionProblem& p, int64_t i) const {
    return (batch * p.queries + token(p, i)) * p.heads + head(p, i);
  }
};

// `head` counts batch and key head together.
inline RowBlock row_block(const AttentionProblem& p, int64_t head, int64_t index) {
  RowBlock r{};
  r.batch = head / p.key_heads;
  r.key_head = head % p.key_heads;
  r.first = index * kQueryBlock;
  r.count = std::min(kQueryBlock, p.rows() - r.first);
  const int64_t from = r.batch * p.queries + r.token(p, 0),
                to = r.batch * p.queries + r.token(p, r.count - 1) + 1;
  const auto range = [&](const int32_t* x, int32_t& least, int32_t& most) {
    const auto [a, b] = std::minmax_element(x + from, x + to);
    least = *a;
    most = *b;
  };
  range(p.q_high, r.high_min, r.high_max);
  range(p.q_low, r.low_min, r.low_max);
  range(p.q_segment, r.segment_min, r.segment_max);
  return r;
}

// Walks over blocks from both ends in turn: under a causal mask, equal shares of the walk are then equal
// work.
inline int64_t balanced(int64_t i, int64_t count) { return i % 2 == 0 ? i / 2 : count - 1 - i / 2; }

inline int64_t keys_in(const AttentionProblem& p, int64_t block) {
  return std::min(kKeyBlock, p.keys - block * kKeyBlock);
}

inline const float* key_rows(const Heads& x, int64_t batch, int64_t head, int64_t block) {
  return x.data + batch * x.batch + head * x.head + block * kKeyBlock * x.token;
}

enum class Tile { empty, full, partial };

// Empty: no row sees any of the keys. Full: every row sees all of them.
inline Tile classify(const AttentionProblem& p, const RowBlock& r, int64_t block) {
  const KeyRange& k = p.ranges[r.batch * p.key_blocks() + block];
  const bool sink = k.first_position < p.sinks;
  if (k.empty_slots == kKeyBlock || k.first_segment > r.segment_max || k.last_segment < r.segment_min ||
      k.first_position > r.high_max || (k.last_position <= r.low_min && !sink))
    return Tile::empty;
  const bool same_segment =
      k.first_segment == k.last_segment && r.segment_min == r.segment_max && k.first_segment == r.segment_min;
  const bool recent = k.first_position > r.low_max || k.last_position < p.sinks;
  return k.empty_slots == 0 && same_segment && recent && k.last_position <= r.high_min ? Tile::full
                                                                                       : Tile::partial;
}

// Scores that the mask hides become -inf.
inline void mask_scores(const AttentionProblem& p, const Scratch& s, const RowBlock& rows, int64_t block) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  const int64_t keys = (rows.batch * p.key_blocks() + block) * kKeyBlock;
  const auto hidden = hn::Set(d, kMinusInfinity);
  const auto sinks = hn::Set(di, p.sinks), none = hn::Set(di, -1);
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t query = rows.batch * p.queries + rows.token(p, i);
    const auto high = hn::Set(di, p.q_high[query]), low = hn::Set(di, p.q_low[query]);
    const auto segment = hn::Set(di, p.q_segment[query]);
    float* score = s.score + i * kKeyBlock;
    for (int64_t j = 0; j < kKeyBlock; j += static_cast<int64_t>(hn::Lanes(d))) {
      const auto position = hn::LoadU(di, p.k_position + keys + j);
      const auto recent = hn::Or(hn::Gt(position, low), hn::Lt(position, sinks));
      const auto known =
          hn::And(hn::Gt(position, none), hn::Eq(hn::LoadU(di, p.k_segment + keys + j), segment));
      const auto seen = hn::And(hn::AndNot(hn::Gt(position, high), recent), known);
      hn::StoreU(hn::IfThenElse(hn::RebindMask(d, seen), hn::LoadU(d, score + j), hidden), d, score + j);
    }
  }
}

HWY_INLINE void scale_row(float* x, int64_t width, float factor) {
  const Floats d;
  const VecF f = hn::Set(d, factor);
  for (int64_t i = 0; i < width; i += static_cast<int64_t>(hn::Lanes(d)))
    sv::store_part(hn::Mul(f, sv::load_part(d, x + i, width - i)), d, x + i, width - i);
}

// The rows' queries times scale.
inline void load_queries(const AttentionProblem& p, const RowBlock& rows, float* q) {
  for (int64_t i = 0; i < rows.count; ++i, q += p.key_width) {
    const float* from =
        p.q.data + rows.batch * p.q.batch + rows.token(p, i) * p.q.token + rows.head(p, i) * p.q.head;
    std::copy_n(from, p.key_width, q);
    scale_row(q, p.key_width, p.scale);
  }
}

// dout, lse and delta. A row that saw no key gets zeros: its probabilities are then 0 and not NaN.
inline void load_upstream(const AttentionProblem& p, const RowBlock& rows, const Scratch& s) {
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t place = rows.place(p, i);
    float* dout = s.dout + i * p.value_width;
    const bool none = p.lse[place] == kMinusInfinity;
    s.lse[i] = none ? 0.0f : p.lse[place];
    s.delta[i] = none ? 0.0f : p.delta[place];
    if (none)
      std::fill_n(dout, p.value_width, 0.0f);
    else
      std::copy_n(p.dout + place * p.value_width, p.value_width, dout);
  }
}

// score = scale q k' for a block of keys.
inline void scores(const AttentionProblem& p, const Scratch& s, const RowBlock& rows, int64_t block) {
  const int64_t pack = (rows.batch * p.key_heads + rows.key_head) * p.key_blocks() + block;
  sv::gemm<false>({s.q, p.key_width, 1}, {p.packed_k + pack * p.key_width * kKeyBlock, kKeyBlock},
                  {s.score, kKeyBlock}, rows.count, p.key_width, kKeyBlock);
}

// to[c][j] = from[j][c], zeros for j >= count.
inline void pack_block(const float* from, int64_t stride, int64_t count, int64_t width, float* to) {
  for (int64_t c = 0; c < width; ++c) {
    for (int64_t j = 0; j < count; ++j) to[c * kKeyBlock + j] = from[j * stride + c];
    std::fill(to + c * kKeyBlock + count, to + (c + 1) * kKeyBlock, 0.0f);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#endif
