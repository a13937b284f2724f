#include "ops/attention/kernel.h"

#include <algorithm>
#include <cmath>
#include <limits>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/attention/kernel_cpu.cc"
#include "ops/simd/targets.h"

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/attention/tile-inl.h"
#include "ops/simd/attention_gemm-inl.h"
#include "ops/simd/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {

// score[i][j] = q[i] k[j] for kRows rows and `count` <= 64 keys that stand where they are: dot products, four
// keys at a time.
template <int64_t kRows>
void dot_products(const AttentionProblem& p, const float* q, const float* keys, int64_t count, float* score) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  for (int64_t first = 0; first < count; first += 4) {
    const float* key[4];  // the last one again where there are fewer than four
    for (int64_t j = 0; j < 4; ++j) key[j] = keys + std::min(first + j, count - 1) * p.k.token;
    VecF sum[kRows][4];
    for (int64_t i = 0; i < kRows; ++i)
      for (int64_t j = 0; j < 4; ++j) sum[i][j] = hn::Zero(d);
    for (int64_t c = 0; c < p.key_width; c += lanes) {
      const int64_t left = p.key_width - c;
      VecF right[4];
      for (int64_t j = 0; j < 4; ++j) right[j] = sv::load_part(d, key[j] + c, left);
      for (int64_t i = 0; i < kRows; ++i) {
        const VecF l = sv::load_part(d, q + i * p.key_width + c, left);
        for (int64_t j = 0; j < 4; ++j) sum[i][j] = hn::MulAdd(l, right[j], sum[i][j]);
      }
    }
    for (int64_t i = 0; i < kRows; ++i)
      for (int64_t j = 0; j < 4; ++j) score[i * kKeyBlock + first + j] = sv::sum_lanes(d, sum[i][j]);
  }
}

// score = scale q k' without packed keys, for few rows.
void small_scores(const AttentionProblem& p, const Scratch& s, const RowBlock& rows, int64_t key_block) {
  const float* keys = key_rows(p.k, rows.batch, rows.key_head, key_block);
  const int64_t count = keys_in(p, key_block);
  for (int64_t i = 0; i < rows.count; i += 4) {
    const float* q = s.q + i * p.key_width;
    float* score = s.score + i * kKeyBlock;
    for (int64_t r = i; r < std::min(i + 4, rows.count);
         ++r)  // what lies past the last key is masked, but read
      std::fill_n(s.score + r * kKeyBlock, kKeyBlock, 0.0f);
    switch (std::min<int64_t>(4, rows.count - i)) {
      case 1:
        dot_products<1>(p, q, keys, count, score);
        break;
      case 2:
        dot_products<2>(p, q, keys, count, score);
        break;
      case 3:
        dot_products<3>(p, q, keys, count, score);
        break;
      default:
        dot_products<4>(p, q, keys, count, score);
        break;
    }
  }
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

void forward_rows(const AttentionProblem& p, const Scratch& s, const RowBlock& rows) {
  float largest[kQueryBlock], total[kQueryBlock];
  std::fill(largest, largest + rows.count, kMinusInfinity);
  std::fill(total, total + rows.count, 0.0f);
  std::fill(s.out, s.out + rows.count * p.value_width, 0.0f);
  load_queries(p, rows, s.q);
  for (int64_t block = 0; block < p.key_blocks(); ++block) {
    const Tile tile = classify(p, rows, block);
    if (tile == Tile::empty) continue;
    if (p.packed_k)
      scores(p, s, rows, block);
    else
      small_scores(p, s, rows, block);
    if (tile == Tile::partial) mask_scores(p, s, rows, block);
    for (int64_t i = 0; i < rows.count; ++i)
      softmax_step(p, s.score + i * kKeyBlock, largest[i], total[i], s.out + i * p.value_width);
    sv::gemm<true>({s.score, kKeyBlock, 1}, {key_rows(p.v, rows.batch, rows.key_head, block), p.v.token},
                   {s.out, p.value_width}, rows.count, keys_in(p, block), p.value_width);
  }
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t place = rows.place(p, i);
    const bool none = total[i] == 0;
    scale_row(s.out + i * p.value_width, p.value_width, none ? 0.0f : 1 / total[i]);
    std::copy_n(s.out + i * p.value_width, p.value_width, p.out + place * p.value_width);
    p.lse[place] = none ? kMinusInfinity : largest[i] + std::log(total[i]);
  }
}

// score: probabilities P of the tile; dscore: dS = P (dout v' - delta).
void tile_gradients(const AttentionProblem& p, const Scratch& s, const RowBlock& rows, int64_t block,
                    Tile tile) {
  const Floats d;
  scores(p, s, rows, block);
  if (tile == Tile::partial) mask_scores(p, s, rows, block);
  const int64_t pack = (rows.batch * p.key_heads + rows.key_head) * p.key_blocks() + block;
  sv::gemm<false>({s.dout, p.value_width, 1}, {p.packed_v + pack * p.value_width * kKeyBlock, kKeyBlock},
                  {s.dscore, kKeyBlock}, rows.count, p.value_width, kKeyBlock);
  for (int64_t i = 0; i < rows.count; ++i) {
    const VecF lse = hn::Set(d, s.lse[i]), delta = hn::Set(d, s.delta[i]);
    float *score = s.score + i * kKeyBlock, *dscore = s.dscore + i * kKeyBlock;
    for (int64_t j = 0; j < kKeyBlock; j += static_cast<int64_t>(hn::Lanes(d))) {
      const VecF e = sv::exp_lanes(d, hn::Sub(hn::LoadU(d, score + j), lse));
      hn::StoreU(e, d, score + j);
      hn::StoreU(hn::Mul(e, hn::Sub(hn::LoadU(d, dscore + j), delta)), d, dscore + j);
    }
  }
}

// dq += dS k for the rows of a block.
void add_dq(const AttentionProblem& p, const Scratch& s, const RowBlock& rows, int64_t block) {
  float* dq = p.dq + ((rows.batch * p.key_heads + rows.key_head) * p.rows() + rows.first) * p.key_width;
  sv::gemm<true>({s.dscore, kKeyBlock, 1}, {key_rows(p.k, rows.batch, rows.key_head, block), p.k.token},
                 {dq, p.key_width}, rows.count, keys_in(p, block), p.key_width);
}

// dk and dv of one block of keys, with the dq that it gives if asked for.
template <bool kQueries>
void backward_key_block(const AttentionProblem& p, const Scratch& s, int64_t head, int64_t block) {
  const int64_t count = keys_in(p, block);
  const int64_t batch = head / p.key_heads, key_head = head % p.key_heads;
  std::fill(s.dk, s.dk + count * p.key_width, 0.0f);
  std::fill(s.dv, s.dv + count * p.value_width, 0.0f);
  for (int64_t i = 0; i < p.row_blocks(); ++i) {
    const RowBlock rows = row_block(p, head, i);
    const Tile tile = classify(p, rows, block);
    if (tile == Tile::empty) continue;
    load_queries(p, rows, s.q);
    load_upstream(p, rows, s);
    tile_gradients(p, s, rows, block, tile);
    sv::gemm<true>({s.score, 1, kKeyBlock}, {s.dout, p.value_width}, {s.dv, p.value_width}, count, rows.count,
                   p.value_width);
    sv::gemm<true>({s.dscore, 1, kKeyBlock}, {s.q, p.key_width}, {s.dk, p.key_width}, count, rows.count,
                   p.key_width);
    if constexpr (kQueries) add_dq(p, s, rows, block);
  }
  for (int64_t j = 0; j < count; ++j) {
    const int64_t place = (batch * p.keys + block * kKeyBlock + j) * p.key_heads + key_head;
    std::copy_n(s.dk + j * p.key_width, p.key_width, p.dk + place * p.key_width);
    std::copy_n(s.dv + j * p.value_width, p.value_width, p.dv + place * p.value_width);
  }
}

void attention_pack(const AttentionProblem& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const int64_t block = item % p.key_blocks(), head = item / p.key_blocks();
    const auto pack = [&](const Heads& x, int64_t width, float* to) {
      if (to)
        pack_block(key_rows(x, head / p.key_heads, head % p.key_heads, block), x.token, keys_in(p, block),
                   width, to + item * width * kKeyBlock);
    };
    pack(p.k, p.key_width, p.packed_k);
    pack(p.v, p.value_width, p.packed_v);
  }
}

void attention_forward(const AttentionProblem& p, float* scratch, int64_t begin, int64_t end) {
  const Scratch s(p, scratch);
  for (int64_t item = begin; item < end; ++item)
    forward_rows(p, s, row_block(p, item / p.row_blocks(), balanced(item % p.row_blocks(), p.row_blocks())));
}

void attention_delta(const float* out, const float* dout, const float* dlse, int64_t width, float* delta,
                     int64_t begin, int64_t end) {
  const Floats d;
  for (int64_t row = begin; row < end; ++row) {
    VecF sum = hn::Zero(d);
    for (int64_t i = 0; i < width; i += static_cast<int64_t>(hn::Lanes(d)))
      sum = hn::MulAdd(sv::load_part(d, out + row * width + i, width - i),
                       sv::load_part(d, dout + row * width + i, width - i), sum);
    delta[row] = sv::sum_lanes(d, sum) - dlse[row];
  }
}

void attention_backward_queries(const AttentionProblem& p, float* scratch, int64_t begin, int64_t end) {
  const Scratch s(p, scratch);
  for (int64_t item = begin; item < end; ++item) {
    const RowBlock rows =
        row_block(p, item / p.row_blocks(), balanced(item % p.row_blocks(), p.row_blocks()));
    load_queries(p, rows, s.q);
    load_upstream(p, rows, s);
    for (int64_t block = 0; block < p.key_blocks(); ++block) {
      const Tile tile = classify(p, rows, block);
      if (tile == Tile::empty) continue;
      tile_gradients(p, s, rows, block, tile);
      add_dq(p, s, rows, block);
    }
  }
}

void attention_backward_keys(const AttentionProblem& p, float* scratch, int64_t begin, int64_t end) {
  const Scratch s(p, scratch);
  for (int64_t item = begin; item < end; ++item)
    backward_key_block<false>(p, s, item / p.key_blocks(), balanced(item % p.key_blocks(), p.key_blocks()));
}

void attention_backward_all(const AttentionProblem& p, float* scratch, int64_t begin, int64_t end) {
  const Scratch s(p, scratch);
  for (int64_t head = begin; head < end; ++head)
    for (int64_t block = 0; block < p.key_blocks(); ++block) backward_key_block<true>(p, s, head, block);
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {

int64_t attention_scratch(const AttentionProblem& p) {
  return 2 * kQueryBlock * (kKeyBlock + p.key_width + p.value_width + 1);
}

WEFT_SIMD_DISPATCH(attention_pack, (const AttentionProblem& p, int64_t begin, int64_t end), (p, begin, end))
WEFT_SIMD_DISPATCH(attention_forward, (const AttentionProblem& p, float* scratch, int64_t begin, int64_t end),
                   (p, scratch, begin, end))
WEFT_SIMD_DISPATCH(attention_delta,
                   (const float* out, const float* dout, const float* dlse, int64_t width, float* delta,
                    int64_t begin, int64_t end),
                   (out, dout, dlse, width, delta, begin, end))
WEFT_SIMD_DISPATCH(attention_backward_queries,
                   (const AttentionProblem& p, float* scratch, int64_t begin, int64_t end),
                   (p, scratch, begin, end))
WEFT_SIMD_DISPATCH(attention_backward_keys,
                   (const AttentionProblem& p, float* scratch, int64_t begin, int64_t end),
                   (p, scratch, begin, end))
WEFT_SIMD_DISPATCH(attention_backward_all,
                   (const AttentionProblem& p, float* scratch, int64_t begin, int64_t end),
                   (p, scratch, begin, end))
}  // namespace weft::kernels
#endif
