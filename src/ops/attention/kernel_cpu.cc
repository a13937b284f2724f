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

void forward_rows(const AttentionProblem& p, const Scratch& s, const RowBlock& rows) {
  float largest[kQueryBlock], total[kQueryBlock];
  std::fill(largest, largest + rows.count, kMinusInfinity);
  std::fill(total, total + rows.count, 0.0f);
  std::fill(s.out, s.out + rows.count * p.value_width, 0.0f);
  load_queries(p, rows, s.q);
  for (int64_t block = 0; block < p.key_blocks(); ++block) {
    const Tile tile = classify(p, rows, block);
    if (tile == Tile::empty) continue;
    scores(p, s, rows, block);
    shape_scores(p, s.score, rows, block, tile, nullptr);
    for (int64_t i = 0; i < rows.count; ++i)
      softmax_step(p, s.score + i * kKeyBlock, largest[i], total[i], s.out + i * p.value_width);
    const int64_t count = keys_in(p, block);
    const auto values = float_rows(p.v, rows.batch, rows.key_head, block, count, p.value_width, s.widened);
    sv::gemm<true>({s.score, kKeyBlock, 1}, values, {s.out, p.value_width}, rows.count, count, p.value_width);
  }
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t place = rows.place(p, i);
    const bool none = total[i] == 0;
    scale_row(s.out + i * p.value_width, p.value_width, none ? 0.0f : 1 / total[i]);
    std::copy_n(s.out + i * p.value_width, p.value_width, p.out + place * p.value_width);
    p.lse[place] = none ? kMinusInfinity : largest[i] + std::log(total[i]);
  }
}

// dslopes += dS (k_position - q_position) for the rows of a block, dS the gradient of the biased scores.
void add_dslopes(const AttentionProblem& p, const Scratch& s, const RowBlock& rows, int64_t block) {
  const Floats d;
  for (int64_t i = 0; i < rows.count; ++i) {
    const int64_t query = rows.batch * p.queries + rows.token(p, i);
    VecF sum = hn::Zero(d);
    for (int64_t j = 0; j < kKeyBlock; j += static_cast<int64_t>(hn::Lanes(d)))
      sum = hn::MulAdd(hn::LoadU(d, s.dscore + i * kKeyBlock + j), distance_lanes(p, rows, query, block, j),
                       sum);
    p.dslopes[rows.place(p, i)] += sv::sum_lanes(d, sum);
  }
}

// score: probabilities P of the tile; dscore: dS = P (dout v' - delta), times the slope of the soft cap. kQueries:
// once for every tile, where dslopes are summed.
template <bool kQueries>
void tile_gradients(const AttentionProblem& p, const Scratch& s, const RowBlock& rows, int64_t block,
                    Tile tile) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  scores(p, s, rows, block);
  shape_scores(p, s.score, rows, block, tile, s.cap);
  const int64_t pack = (rows.batch * p.key_heads + rows.key_head) * p.key_blocks() + block;
  sv::gemm<false>({s.dout, p.value_width, 1}, {p.packed_v + pack * p.value_width * kKeyBlock, kKeyBlock},
                  {s.dscore, kKeyBlock}, rows.count, p.value_width, kKeyBlock);
  for (int64_t i = 0; i < rows.count; ++i) {
    const VecF lse = hn::Set(d, s.lse[i]), delta = hn::Set(d, s.delta[i]);
    float *score = s.score + i * kKeyBlock, *dscore = s.dscore + i * kKeyBlock;
    for (int64_t j = 0; j < kKeyBlock; j += lanes) {
      const VecF e = sv::exp_lanes(d, hn::Sub(hn::LoadU(d, score + j), lse));
      hn::StoreU(e, d, score + j);
      hn::StoreU(hn::Mul(e, hn::Sub(hn::LoadU(d, dscore + j), delta)), d, dscore + j);
    }
  }
  if (kQueries && p.dslopes) add_dslopes(p, s, rows, block);
  for (int64_t j = 0; p.softcap > 0 && j < rows.count * kKeyBlock; j += lanes)
    hn::StoreU(hn::Mul(hn::LoadU(d, s.dscore + j), hn::LoadU(d, s.cap + j)), d, s.dscore + j);
}

// dq += dS k for the rows of a block.
void add_dq(const AttentionProblem& p, const Scratch& s, const RowBlock& rows, int64_t block) {
  float* dq = p.dq + ((rows.batch * p.key_heads + rows.key_head) * p.rows() + rows.first) * p.key_width;
  const int64_t count = keys_in(p, block);
  const auto keys = float_rows(p.k, rows.batch, rows.key_head, block, count, p.key_width, s.widened);
  sv::gemm<true>({s.dscore, kKeyBlock, 1}, keys, {dq, p.key_width}, rows.count, count, p.key_width);
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
    tile_gradients<kQueries>(p, s, rows, block, tile);
    sv::gemm<true>({s.score, 1, kKeyBlock}, {s.dout, p.value_width}, {s.dv, p.value_width}, count, rows.count,
                   p.value_width);
    sv::gemm<true>({s.dscore, 1, kKeyBlock}, {s.q, p.key_width}, {s.dk, p.key_width}, count, rows.count,
                   p.key_width);
    if constexpr (kQueries) add_dq(p, s, rows, block);
  }
  for (int64_t j = 0; j < count; ++j) {
    const int64_t place = (batch * p.keys + block * kKeyBlock + j) * p.key_heads + key_head;
    if (p.dk) std::copy_n(s.dk + j * p.key_width, p.key_width, p.dk + place * p.key_width);
    if (p.dv) std::copy_n(s.dv + j * p.value_width, p.value_width, p.dv + place * p.value_width);
  }
}

void attention_pack(const AttentionProblem& p, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; ++item) {
    const int64_t block = item % p.key_blocks(), head = item / p.key_blocks();
    const auto pack = [&](const KeyRows& x, int64_t width, float* to) {
      if (to)
        pack_block(x, head / p.key_heads, head % p.key_heads, block, keys_in(p, block), width,
                   to + item * width * kKeyBlock);
    };
    pack(p.k, p.key_width, p.packed_k);
    pack(p.v, p.value_width, p.packed_v);
    if (p.wide_v)
      float_rows(p.v, head / p.key_heads, head % p.key_heads, block, keys_in(p, block), p.value_width,
                 p.wide_v + item * p.value_width * kKeyBlock);
  }
}

void attention_forward(const AttentionProblem& p, float* scratch, int64_t begin, int64_t end) {
  const Scratch s(p, scratch);
  for (int64_t item = begin; item < end; ++item)
    forward_rows(p, s, row_block(p, item / p.row_blocks(), balanced(item % p.row_blocks(), p.row_blocks())));
}

void attention_count_tiles(const AttentionProblem& p, int64_t* visited) {
  for (int64_t item = 0; item < p.batch * p.key_heads * p.row_blocks(); ++item) {
    const RowBlock rows = row_block(p, item / p.row_blocks(), item % p.row_blocks());
    for (int64_t block = 0; block < p.key_blocks(); ++block)
      *visited += classify(p, rows, block) != Tile::empty;
  }
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
      tile_gradients<true>(p, s, rows, block, tile);
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
  return 2 * kQueryBlock * (kKeyBlock + p.key_width + p.value_width + 1) +
         kQueryBlock * (kKeyBlock + std::max(p.key_width, p.value_width));
}

WEFT_SIMD_DISPATCH(attention_count_tiles, (const AttentionProblem& p, int64_t* visited), (p, visited))
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
