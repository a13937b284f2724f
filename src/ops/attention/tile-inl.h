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
#include "ops/attention/widen-inl.h"
#include "ops/simd/attention_gemm-inl.h"
#include "ops/simd/exp-inl.h"
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
    cap = take(kQueryBlock * kKeyBlock);
    widened = take(kKeyBlock * std::max(p.key_width, p.value_width));
    lse = take(kQueryBlock);
    delta = take(kQueryBlock);
  }
  float *q, *dk, *dv, *dout;  // rows of the head widths; q is scaled
  float* out;                 // forward, where dv is not needed
  float *score, *dscore;      // [kQueryBlock, kKeyBlock]
  float* cap;                 // the same: derivative of the soft cap
  float* widened;             // rows of 16- or 8-bit keys or values in fp32
  float *lse, *delta;         // [kQueryBlock]
};

// Rows [first, first + count) of one key head, and the widest and narrowest limits among their queries.
struct RowBlock {
  int64_t batch, key_head, first, count;
  int32_t high_min, high_max, low_min, low_max, segment_min, segment_max, prefix_min, prefix_max;

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
  range(p.q_prefix, r.prefix_min, r.prefix_max);
  return r;
}

// Walks over blocks from both ends in turn: under a causal mask, equal shares of the walk are then equal
// work.
inline int64_t balanced(int64_t i, int64_t count) { return i % 2 == 0 ? i / 2 : count - 1 - i / 2; }

inline int64_t keys_in(const AttentionProblem& p, int64_t block) {
  return std::min(kKeyBlock, p.keys - block * kKeyBlock);
}

// Which heads of a key head see the stripes of a block of keys.
struct StripeHeads {
  bool some = false, all = false;
};

inline StripeHeads stripe_heads(const AttentionProblem& p, int64_t key_head, const KeyRange& k) {
  if (!p.k_phase) return {};
  StripeHeads seen{false, k.first_phase == k.last_phase};
  for (int64_t h = key_head * p.group(); h < (key_head + 1) * p.group(); ++h) {
    const bool here = p.head_phase[h] >= k.first_phase && p.head_phase[h] <= k.last_phase;
    seen.some |= here;
    seen.all &= here;
  }
  return seen;
}

enum class Tile { empty, full, partial };

// Empty: no row sees any of the keys. Full: every row sees all of them. Partial: neither is sure.
inline Tile classify(const AttentionProblem& p, const RowBlock& r, int64_t block) {
  const KeyRange& k = p.ranges[r.batch * p.key_blocks() + block];
  if (k.empty_slots == kKeyBlock || k.first_segment > r.segment_max || k.last_segment < r.segment_min)
    return Tile::empty;
  const bool in_reach = k.first_position <= r.high_max;
  const StripeHeads stripe = stripe_heads(p, r.key_head, k);
  const bool tree = p.q_tree && k.last_position >= p.tree_begin[r.batch] &&
                    k.first_position < p.tree_begin[r.batch] + 64 * p.tree_words;
  if (!(in_reach && (k.last_position > r.low_min || stripe.some)) && k.first_position >= r.prefix_max &&
      !tree)
    return Tile::empty;
  const bool same_segment =
      k.first_segment == k.last_segment && r.segment_min == r.segment_max && k.first_segment == r.segment_min;
  const bool ended = k.last_position <= r.high_min;
  const bool all = (ended && (k.first_position > r.low_max || stripe.all)) || k.last_position < r.prefix_min;
  return k.empty_slots == 0 && same_segment && all ? Tile::full : Tile::partial;
}

// all ones where the query's words have the bit of a key's position, for the 64 keys of a block.
inline void tree_flags(const AttentionProblem& p, int64_t batch, int64_t query, const int32_t* position,
                       int32_t* flags) {
  const int64_t* words = p.q_tree + query * p.tree_words;
  for (int64_t j = 0; j < kKeyBlock; ++j) {
    const int64_t bit = position[j] - p.tree_begin[batch];
    const bool inside = bit >= 0 && bit < 64 * p.tree_words;
    flags[j] = inside && (static_cast<uint64_t>(words[bit / 64]) >> (bit % 64) & 1) ? -1 : 0;
  }
}

// Scores that the mask hides become -inf.
inline void mask_scores(const AttentionProblem& p, float* scores, const RowBlock& rows, int64_t block) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  const int64_t keys = (rows.batch * p.key_blocks() + block) * kKeyBlock;
  const auto hidden = hn::Set(d, kMinusInfinity);
  const auto none = hn::Set(di, -1);
  HWY_ALIGN int32_t flags[kKeyBlock];
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t query = rows.batch * p.queries + rows.token(p, i);
    const auto high = hn::Set(di, p.q_high[query]), low = hn::Set(di, p.q_low[query]);
    const auto segment = hn::Set(di, p.q_segment[query]), prefix = hn::Set(di, p.q_prefix[query]);
    const auto phase = hn::Set(di, p.head_phase ? p.head_phase[rows.head(p, i)] : 0);
    if (p.q_tree) tree_flags(p, rows.batch, query, p.k_position + keys, flags);
    float* score = scores + i * kKeyBlock;
    for (int64_t j = 0; j < kKeyBlock; j += static_cast<int64_t>(hn::Lanes(d))) {
      const auto position = hn::LoadU(di, p.k_position + keys + j);
      auto recent = hn::Gt(position, low);
      if (p.k_phase) recent = hn::Or(recent, hn::Eq(hn::LoadU(di, p.k_phase + keys + j), phase));
      auto seen = hn::Or(hn::AndNot(hn::Gt(position, high), recent), hn::Lt(position, prefix));
      if (p.q_tree) seen = hn::Or(seen, hn::Lt(hn::LoadU(di, flags + j), hn::Zero(di)));
      const auto known =
          hn::And(hn::Gt(position, none), hn::Eq(hn::LoadU(di, p.k_segment + keys + j), segment));
      hn::StoreU(hn::IfThenElse(hn::RebindMask(d, hn::And(seen, known)), hn::LoadU(d, score + j), hidden), d,
                 score + j);
    }
  }
}

// Scores become c tanh(score / c); `slope`, if given, gets the derivative.
inline void cap_scores(const AttentionProblem& p, int64_t rows, float* score, float* slope) {
  const Floats d;
  const VecF c = hn::Set(d, p.softcap), inverse = hn::Set(d, 1 / p.softcap), one = hn::Set(d, 1.0f);
  for (int64_t j = 0; j < rows * kKeyBlock; j += static_cast<int64_t>(hn::Lanes(d))) {
    const VecF t = sv::tanh(d, hn::Mul(inverse, hn::LoadU(d, score + j)));
    hn::StoreU(hn::Mul(c, t), d, score + j);
    if (slope) hn::StoreU(hn::NegMulAdd(t, t, one), d, slope + j);
  }
}

// k_position - q_position for lanes of keys.
HWY_INLINE VecF distance_lanes(const AttentionProblem& p, const RowBlock& rows, int64_t query, int64_t block,
                               int64_t j) {
  const Floats d;
  const hn::RebindToSigned<Floats> di;
  const int64_t keys = (rows.batch * p.key_blocks() + block) * kKeyBlock;
  return hn::ConvertTo(d, hn::Sub(hn::LoadU(di, p.k_position + keys + j), hn::Set(di, p.q_position[query])));
}

inline void add_slopes(const AttentionProblem& p, float* scores, const RowBlock& rows, int64_t block) {
  const Floats d;
  for (int64_t i = 0; i < rows.count; ++i) {
    const VecF slope = hn::Set(d, p.slopes[rows.head(p, i)]);
    const int64_t query = rows.batch * p.queries + rows.token(p, i);
    float* score = scores + i * kKeyBlock;
    for (int64_t j = 0; j < kKeyBlock; j += static_cast<int64_t>(hn::Lanes(d)))
      hn::StoreU(hn::MulAdd(slope, distance_lanes(p, rows, query, block, j), hn::LoadU(d, score + j)), d,
                 score + j);
  }
}

// What happens to scores between the product and the softmax.
inline void shape_scores(const AttentionProblem& p, float* scores, const RowBlock& rows, int64_t block,
                         Tile tile, float* cap_slope) {
  if (p.softcap > 0) cap_scores(p, rows.count, scores, cap_slope);
  if (p.slopes) add_slopes(p, scores, rows, block);
  if (tile == Tile::partial) mask_scores(p, scores, rows, block);
}

HWY_INLINE void scale_row(float* x, int64_t width, float factor) {
  const Floats d;
  const VecF f = hn::Set(d, factor);
  for (int64_t i = 0; i < width; i += static_cast<int64_t>(hn::Lanes(d)))
    sv::store_part(hn::Mul(f, sv::load_part(d, x + i, width - i)), d, x + i, width - i);
}

// One step of the online softmax for a row: scores become exp(score - largest), the sum and the accumulated
// output are brought to the new largest score.
HWY_INLINE void softmax_step(const AttentionProblem& p, float* score, float& largest, float& total,
                             float* sum_out) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  VecF top = hn::Set(d, largest), sum_of_all = hn::Zero(d);
  for (int64_t j = 0; j < kKeyBlock; j += lanes) {
    top = hn::Max(top, hn::LoadU(d, score + j));
    sum_of_all = hn::Add(sum_of_all, hn::LoadU(d, score + j));
  }
  const float next = sv::max_lanes(d, top);
  // No key seen yet. Max may drop a NaN; a sum does not, and then it must reach the output.
  if (next == kMinusInfinity && sv::sum_lanes(d, sum_of_all) == kMinusInfinity) {
    std::fill(score, score + kKeyBlock, 0.0f);
    return;
  }
  const VecF shift = hn::Set(d, next);
  VecF sum = hn::Zero(d);
  for (int64_t j = 0; j < kKeyBlock; j += lanes) {
    const VecF e = sv::exp_lanes(d, hn::Sub(hn::LoadU(d, score + j), shift));
    hn::StoreU(e, d, score + j);
    sum = hn::Add(sum, e);
  }
  const float fade = std::exp(largest - next);
  total = total * fade + sv::sum_lanes(d, sum);
  if (fade != 1) scale_row(sum_out, p.value_width, fade);
  largest = next;
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

// Rows of a block of keys or values as floats: where they stand, or widened into `buffer` [64, width].
inline sv::Right float_rows(const KeyRows& x, int64_t batch, int64_t head, int64_t block, int64_t count,
                            int64_t width, float* buffer) {
  if (x.type == Element::fp32) {
    const auto* data = static_cast<const float*>(x.data);
    return {data + batch * x.batch + head * x.head + block * kKeyBlock * x.token, x.token};
  }
  for (int64_t j = 0; j < count; ++j)
    widen_row(x, batch, head, block * kKeyBlock + j, 0, width, buffer + j * width);
  return {buffer, width};
}

// to[c][j] = channel c of key j of the block, zeros for j >= count.
inline void pack_block(const KeyRows& x, int64_t batch, int64_t head, int64_t block, int64_t count,
                       int64_t width, float* to) {
  constexpr int64_t kPiece = 32;  // channels: [64, 32] floats fit in the first-level cache
  float piece[kKeyBlock * kPiece];
  for (int64_t first = 0; first < width; first += kPiece) {
    const int64_t channels = std::min(kPiece, width - first);
    for (int64_t j = 0; j < count; ++j)
      widen_row(x, batch, head, block * kKeyBlock + j, first, channels, piece + j * kPiece);
    for (int64_t c = 0; c < channels; ++c) {
      float* row = to + (first + c) * kKeyBlock;
      for (int64_t j = 0; j < count; ++j) row[j] = piece[j * kPiece + c];
      std::fill(row + count, row + kKeyBlock, 0.0f);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#endif
