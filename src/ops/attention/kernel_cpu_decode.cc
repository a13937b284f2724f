// Attention of a few queries to many keys, as in decoding: memory is read once, in the type that it has, for all
// the query heads of a key head. Each range of keys gives partial sums, which are then merged in order.
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/attention/kernel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/attention/kernel_cpu_decode.cc"
#include "ops/simd/targets.h"

#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "ops/attention/tile-inl.h"
#include "ops/attention/widen-inl.h"
#include "ops/simd/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels {
namespace HWY_NAMESPACE {

// Vectors of values that are summed at once, with 4 rows.
#if HWY_TARGET == HWY_AVX3
constexpr int64_t kValueVectors = 4;
#else
constexpr int64_t kValueVectors = 2;
#endif
constexpr int64_t kRowsAtOnce = 4;
// Keys whose scores for kRows rows are summed at once: as many sums as a vector has lanes where that works out.
template <int64_t kRows>
constexpr int64_t kKeysAtOnce = kRows == 3 ? 2 : std::max<int64_t>(1, HWY_LANES(float) / kRows);

// Keys or values of one head in a block: row j at data + j * token.
template <class T>
struct TypedRows {
  const T* data;
  int64_t token;
  const float* scale;
  int64_t scale_token, group;
};

template <class T>
TypedRows<T> typed_rows(const KeyRows& x, int64_t batch, int64_t head, int64_t block) {
  const int64_t key = block * kKeyBlock;
  return {static_cast<const T*>(x.data) + batch * x.batch + head * x.head + key * x.token, x.token,
          x.scale ? scales_of(x, batch, head, key) : nullptr, x.scale_token, x.group};
}

// Asks for the rows that come next while the present ones are used.
template <class T>
HWY_INLINE void prefetch(const TypedRows<T>& x, int64_t count, int64_t width) {
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t j = 0; j < count; ++j)
    for (int64_t c = 0; c < width; c += kLine) __builtin_prefetch(x.data + j * x.token + c, 0, 2);
}

// Sums of the lanes of kCount vectors, in order. Pairs of neighbours are added, which halves the number of vectors,
// until one holds all: for as many vectors as lanes a third of the work of folding each.
template <int64_t kCount>
HWY_INLINE void sum_all_lanes(VecF (&x)[kCount], float* sums) {
  const Floats d;
#if HWY_TARGET == HWY_AVX3  // elsewhere such shuffles are several instructions
  if constexpr (kCount == HWY_LANES(float)) {
    for (int64_t count = kCount; count > 1; count /= 2)
      for (int64_t i = 0; i < count / 2; ++i)
        x[i] = hn::Add(hn::ConcatEven(d, x[2 * i + 1], x[2 * i]), hn::ConcatOdd(d, x[2 * i + 1], x[2 * i]));
    return hn::StoreU(x[0], d, sums);
  }
#endif
  for (int64_t i = 0; i < kCount; ++i) sums[i] = sv::sum_lanes(d, x[i]);
}

// sums[i][j] = q[i] . keys[j] over channels [first, end), for kRows rows and kKeys keys.
template <int64_t kRows, int64_t kKeys, class T>
HWY_INLINE void dot_products(const float* q, int64_t q_row, const T* const* keys, int64_t first, int64_t end,
                             float (&sums)[kRows][kKeys]) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  VecF sum[kRows * kKeys];
#pragma GCC unroll 16
  for (int64_t i = 0; i < kRows * kKeys; ++i) sum[i] = hn::Zero(d);
  int64_t c = first;
  for (; c + lanes <= end; c += lanes) {
    VecF left[kRows];
#pragma GCC unroll 4
    for (int64_t i = 0; i < kRows; ++i) left[i] = hn::LoadU(d, q + i * q_row + c);
#pragma GCC unroll 16
    for (int64_t j = 0; j < kKeys; ++j) {
      const VecF right = load_wide(keys[j] + c);
#pragma GCC unroll 4
      for (int64_t i = 0; i < kRows; ++i) sum[i * kKeys + j] = hn::MulAdd(left[i], right, sum[i * kKeys + j]);
    }
  }
  if (c < end)
    for (int64_t j = 0; j < kKeys; ++j) {
      const VecF right = load_wide_part(keys[j] + c, end - c);
      for (int64_t i = 0; i < kRows; ++i)
        sum[i * kKeys + j] =
            hn::MulAdd(sv::load_part(d, q + i * q_row + c, end - c), right, sum[i * kKeys + j]);
    }
  sum_all_lanes<kRows * kKeys>(sum, &sums[0][0]);
}

// score[i][j] = q[i] k[j] for kRows rows and all keys of a block; what lies past `count` is left as it is.
template <int64_t kRows, class T>
void block_scores(const AttentionProblem& p, const float* q, const TypedRows<T>& k, int64_t count,
                  float* score) {
  constexpr int64_t kKeys = kKeysAtOnce<kRows>;
  for (int64_t first = 0; first < count; first += kKeys) {
    const T* keys[kKeys];  // the last one again where there are fewer
    const float* scales[kKeys] = {};
    for (int64_t j = 0; j < kKeys; ++j) {
      const int64_t key = std::min(first + j, count - 1);
      keys[j] = k.data + key * k.token;
      if (k.scale) scales[j] = k.scale + key * k.scale_token;
    }
    float sums[kRows][kKeys], total[kRows][kKeys] = {};
    const int64_t group = k.scale ? k.group : p.key_width;
    for (int64_t from = 0; from < p.key_width; from += group) {
      dot_products<kRows, kKeys>(q, p.key_width, keys, from, from + group, sums);
      for (int64_t i = 0; i < kRows; ++i)
        for (int64_t j = 0; j < kKeys; ++j)
          total[i][j] += k.scale ? sums[i][j] * scales[j][from / group] : sums[i][j];
    }
    for (int64_t i = 0; i < kRows; ++i)
      std::copy_n(total[i], std::min(kKeys, count - first), score + i * kKeyBlock + first);
  }
}

// out[i] += sum_j weight[i][j] v[j] for kRows rows; one scale a row of v is already in the weights.
template <int64_t kRows, class T>
void add_values(const float* weight, const TypedRows<T>& v, int64_t count, int64_t width, float* out) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  constexpr int64_t kVectors = kValueVectors;
  int64_t c = 0;
  for (; c + kVectors * lanes <= width; c += kVectors * lanes) {
    VecF sum[kRows][kVectors];
    for (int64_t i = 0; i < kRows; ++i)
      for (int64_t n = 0; n < kVectors; ++n) sum[i][n] = hn::LoadU(d, out + i * width + c + n * lanes);
    for (int64_t j = 0; j < count; ++j) {
      VecF right[kVectors];
      for (int64_t n = 0; n < kVectors; ++n) right[n] = load_wide(v.data + j * v.token + c + n * lanes);
      for (int64_t i = 0; i < kRows; ++i) {
        const VecF w = hn::Set(d, weight[i * kKeyBlock + j]);
        for (int64_t n = 0; n < kVectors; ++n) sum[i][n] = hn::MulAdd(w, right[n], sum[i][n]);
      }
    }
    for (int64_t i = 0; i < kRows; ++i)
      for (int64_t n = 0; n < kVectors; ++n) hn::StoreU(sum[i][n], d, out + i * width + c + n * lanes);
  }
  for (; c < width; c += lanes)
    for (int64_t i = 0; i < kRows; ++i) {
      VecF sum = sv::load_part(d, out + i * width + c, width - c);
      for (int64_t j = 0; j < count; ++j)
        sum = hn::MulAdd(hn::Set(d, weight[i * kKeyBlock + j]),
                         load_wide_part(v.data + j * v.token + c, width - c), sum);
      sv::store_part(sum, d, out + i * width + c, width - c);
    }
}

// Calls body.template operator()<n>(first) for runs of at most four rows.
template <class Body>
HWY_INLINE void for_rows(int64_t rows, const Body& body) {
  int64_t i = 0;
  for (; i + kRowsAtOnce <= rows; i += kRowsAtOnce) body.template operator()<kRowsAtOnce>(i);
  if (rows - i == 3) body.template operator()<3>(i);
  if (rows - i == 2) body.template operator()<2>(i);
  if (rows - i == 1) body.template operator()<1>(i);
}

// Rows side by side: those of a cache lie so far apart that few sets of the first-level cache would have to hold
// them all, and they are read panel by panel.
template <class T>
TypedRows<T> gather_rows(const TypedRows<T>& x, int64_t count, int64_t width, float* buffer) {
  if (x.token == width) return x;
  T* to = reinterpret_cast<T*>(buffer);
  for (int64_t j = 0; j < count; ++j) std::copy_n(x.data + j * x.token, width, to + j * width);
  return {to, width, x.scale, x.scale_token, x.group};
}

// Values with several scales a row are widened first; a single scale goes into the weights.
template <class T>
void weigh_values(const AttentionProblem& p, const RowBlock& rows, int64_t block, int64_t count,
                  float* weight, float* buffer, float* out) {
  const auto add = [&](const auto& v) HWY_ATTR {
    for_rows(rows.count, [&]<int64_t kRows>(int64_t i) {
      add_values<kRows>(weight + i * kKeyBlock, v, count, p.value_width, out + i * p.value_width);
    });
  };
  const auto v = typed_rows<T>(p.v, rows.batch, rows.key_head, block);
  if (v.scale && v.group < p.value_width) {
    const auto wide = float_rows(p.v, rows.batch, rows.key_head, block, count, p.value_width, buffer);
    return add(TypedRows<float>{wide.data, wide.row, nullptr, 0, 0});
  }
  for (int64_t i = 0; v.scale && i < rows.count; ++i)
    for (int64_t j = 0; j < count; ++j) weight[i * kKeyBlock + j] *= v.scale[j * v.scale_token];
  add(gather_rows(v, count, p.value_width, buffer));
}

// One block of keys for all rows of a key head.
template <class T>
void decode_block(const AttentionProblem& p, const RowBlock& rows, int64_t block, Tile tile, const float* q,
                  float* score, float* buffer, float* out, float* largest, float* total) {
  const int64_t count = keys_in(p, block);
  const auto k = typed_rows<T>(p.k, rows.batch, rows.key_head, block);
  prefetch(typed_rows<T>(p.v, rows.batch, rows.key_head, block), count, p.value_width);
  for_rows(rows.count, [&]<int64_t kRows>(int64_t i) {
    block_scores<kRows>(p, q + i * p.key_width, k, count, score + i * kKeyBlock);
  });
  if (count < kKeyBlock)  // masked, but read
    for (int64_t i = 0; i < rows.count; ++i)
      std::fill(score + i * kKeyBlock + count, score + (i + 1) * kKeyBlock, 0.0f);
  if (rows.key_head + 1 < p.key_heads)
    prefetch(typed_rows<T>(p.k, rows.batch, rows.key_head + 1, block), count, p.key_width);
  else if (block + 1 < p.key_blocks())
    prefetch(typed_rows<T>(p.k, rows.batch, 0, block + 1), keys_in(p, block + 1), p.key_width);
  shape_scores(p, score, rows, block, tile, nullptr);
  for (int64_t i = 0; i < rows.count; ++i)
    softmax_step(p, score + i * kKeyBlock, largest[i], total[i], out + i * p.value_width);
  weigh_values<T>(p, rows, block, count, score, buffer, out);
}

// Calls body.template operator()<T>() with the type of keys and values.
template <class Body>
void with_type(const AttentionProblem& p, const Body& body) {
  switch (p.k.type) {
    case Element::fp32:
      return body.template operator()<float>();
    case Element::bf16:
      return body.template operator()<hwy::bfloat16_t>();
    case Element::fp16:
      return body.template operator()<hwy::float16_t>();
    case Element::int8:
      return body.template operator()<int8_t>();
  }
}

int64_t part_size(const AttentionProblem& p) { return p.rows() * (p.value_width + 2); }

// The heads of a range of keys, block after block, so that memory is walked through in order.
template <class T>
void decode_split(const AttentionProblem& p, int64_t batch, int64_t split, float* q, float* score,
                  float* buffer, float* partial) {
  const int64_t rows = p.rows();
  const auto part = [&](int64_t head) { return partial + head * part_size(p); };
  for (int64_t head = 0; head < p.key_heads; ++head) {
    std::fill_n(part(head), rows * p.value_width, 0.0f);
    std::fill_n(part(head) + rows * p.value_width, rows, kMinusInfinity);
    std::fill_n(part(head) + rows * (p.value_width + 1), rows, 0.0f);
    load_queries(p, row_block(p, batch * p.key_heads + head, 0), q + head * rows * p.key_width);
  }
  const int64_t end = std::min(p.key_blocks(), (split + 1) * kSplitBlocks);
  for (int64_t block = split * kSplitBlocks; block < end; ++block)
    for (int64_t head = 0; head < p.key_heads; ++head) {
      const RowBlock r = row_block(p, batch * p.key_heads + head, 0);
      const Tile tile = classify(p, r, block);
      if (tile == Tile::empty) continue;
      float* largest = part(head) + rows * p.value_width;
      decode_block<T>(p, r, block, tile, q + head * rows * p.key_width, score, buffer, part(head), largest,
                      largest + rows);
    }
}

void attention_decode(const AttentionProblem& p, float* scratch, float* partial, int64_t begin, int64_t end) {
  const int64_t splits = attention_splits(p);
  float* score = scratch;
  float* buffer = score + kDecodeRows * kKeyBlock;
  float* q = buffer + kKeyBlock * p.value_width;
  for (int64_t item = begin; item < end; ++item)
    with_type(p, [&]<class T>() {
      decode_split<T>(p, item / splits, item % splits, q, score, buffer,
                      partial + item * p.key_heads * part_size(p));
    });
}

void attention_decode_merge(const AttentionProblem& p, const float* partial, int64_t begin, int64_t end) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const int64_t rows = p.rows(), splits = attention_splits(p), width = p.value_width;
  for (int64_t head = begin; head < end; ++head) {
    const RowBlock r = row_block(p, head, 0);
    const auto part = [&](int64_t split) {
      return partial + ((r.batch * splits + split) * p.key_heads + r.key_head) * part_size(p);
    };
    for (int64_t i = 0; i < rows; ++i) {
      float top = kMinusInfinity, total = 0;
      for (int64_t s = 0; s < splits; ++s) top = std::max(top, part(s)[rows * width + i]);
      float* out = p.out + r.place(p, i) * width;
      std::fill_n(out, width, 0.0f);
      for (int64_t s = 0; s < splits; ++s) {
        const float largest = part(s)[rows * width + i];
        if (largest == kMinusInfinity && part(s)[rows * (width + 1) + i] == 0) continue;
        const float fade = std::exp(largest - top);
        total += fade * part(s)[rows * (width + 1) + i];
        const VecF f = hn::Set(d, fade);
        for (int64_t c = 0; c < width; c += lanes)
          sv::store_part(hn::MulAdd(f, sv::load_part(d, part(s) + i * width + c, width - c),
                                    sv::load_part(d, out + c, width - c)),
                         d, out + c, width - c);
      }
      const bool none = total == 0;
      scale_row(out, width, none ? 0.0f : 1 / total);
      p.lse[r.place(p, i)] = none ? kMinusInfinity : top + std::log(total);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weft::kernels {

int64_t attention_decode_scratch(const AttentionProblem& p) {
  return kDecodeRows * kKeyBlock + kKeyBlock * p.value_width + p.key_heads * p.rows() * p.key_width;
}

int64_t attention_partial_size(const AttentionProblem& p) {
  return p.batch * attention_splits(p) * p.key_heads * p.rows() * (p.value_width + 2);
}

WEFT_SIMD_DISPATCH(attention_decode,
                   (const AttentionProblem& p, float* scratch, float* partial, int64_t begin, int64_t end),
                   (p, scratch, partial, begin, end))
WEFT_SIMD_DISPATCH(attention_decode_merge,
                   (const AttentionProblem& p, const float* partial, int64_t begin, int64_t end),
                   (p, partial, begin, end))
}  // namespace weft::kernels
#endif
