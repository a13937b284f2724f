// Small matrix products for kernels whose operands fit in cache. Row-major fp32; every operand is a pointer
// and a row stride in elements. Included by kernel files for each instruction set.
#if defined(WEFT_OPS_SIMD_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_OPS_SIMD_GEMM_INL_H_
#undef WEFT_OPS_SIMD_GEMM_INL_H_
#else
#define WEFT_OPS_SIMD_GEMM_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace weft::simd {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_AVX3
constexpr int kTileRows = 8, kDotColumns = 4;  // 16 sums in 32 registers
#else
constexpr int kTileRows = 4, kDotColumns = 2;  // 8 sums in 16 registers
#endif
constexpr int kTileVectors = 2;

// A left operand: element (r, i) at data[r * row + i * column]; column 1 is row-major, row 1 its transpose.
struct Left {
  const float* data;
  int64_t row, column;
};

// How the product is stored: C = alpha A B, or C += alpha A B.
struct Store {
  float alpha = 1;
  bool add = false;
};

// One tile of C kept in registers. `last` is how many lanes of the last vector exist.
template <int kRows, int kVectors, bool kWhole>
HWY_INLINE void gemm_tile(int64_t depth, Left a, const float* HWY_RESTRICT b, int64_t b_row,
                          float* HWY_RESTRICT c, int64_t c_row, Store store, size_t last) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = hn::Lanes(d);
  const auto mask = hn::FirstN(d, last);
  hn::Vec<decltype(d)> sum[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) sum[r][j] = hn::Zero(d);
  for (int64_t i = 0; i < depth; ++i) {
    hn::Vec<decltype(d)> right[kVectors];
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      const float* at = b + i * b_row + j * lanes;
      right[j] = kWhole || j + 1 < kVectors ? hn::LoadU(d, at) : hn::MaskedLoad(mask, d, at);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const auto left = hn::Set(d, a.data[r * a.row + i * a.column]);
#pragma GCC unroll 2
      for (int j = 0; j < kVectors; ++j) sum[r][j] = hn::MulAdd(left, right[j], sum[r][j]);
    }
  }
  const auto alpha = hn::Set(d, store.alpha);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < kVectors; ++j) {
      float* at = c + r * c_row + j * lanes;
      if (kWhole || j + 1 < kVectors) {
        hn::StoreU(store.add ? hn::MulAdd(alpha, sum[r][j], hn::LoadU(d, at)) : hn::Mul(alpha, sum[r][j]), d,
                   at);
      } else {
        const auto old = store.add ? hn::MaskedLoad(mask, d, at) : hn::Zero(d);
        hn::BlendedStore(hn::MulAdd(alpha, sum[r][j], old), mask, d, at);
      }
    }
}

// A column panel of C, as wide as a tile, from top to bottom.
template <int kVectors, bool kWhole>
HWY_INLINE void gemm_panel(int64_t rows, int64_t depth, Left a, const float* b, int64_t b_row, float* c,
                           int64_t c_row, Store store, size_t last) {
  const auto tile = [&]<int kRows>(int64_t r) HWY_ATTR {
    gemm_tile<kRows, kVectors, kWhole>(depth, {a.data + r * a.row, a.row, a.column}, b, b_row, c + r * c_row,
                                       c_row, store, last);
  };
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) tile.template operator()<kTileRows>(r);
  if (kTileRows > 4 && r + 4 <= rows) tile.template operator()<4>(r), r += 4;
  if (r + 2 <= rows) tile.template operator()<2>(r), r += 2;
  if (r < rows) tile.template operator()<1>(r);
}

// C [rows, columns] = A [rows, depth] B [depth, columns]. B's column panels should fit in the first-level
// cache.
HWY_ATTR inline void gemm(int64_t rows, int64_t columns, int64_t depth, Left a, const float* b, int64_t b_row,
                          float* c, int64_t c_row, Store store = {}) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = hn::Lanes(d), panel = kTileVectors * lanes;
  int64_t j = 0;
  for (; j + panel <= columns; j += panel)
    gemm_panel<kTileVectors, true>(rows, depth, a, b + j, b_row, c + j, c_row, store, lanes);
  const int64_t left = columns - j;
  if (left > lanes)
    gemm_panel<kTileVectors, false>(rows, depth, a, b + j, b_row, c + j, c_row, store, left - lanes);
  else if (left > 0)
    gemm_panel<1, false>(rows, depth, a, b + j, b_row, c + j, c_row, store, left);
}

// A row-major matrix, and the transpose of one, as a left operand.
inline Left plain(const float* a, int64_t row) { return {a, row, 1}; }
inline Left transposed(const float* a, int64_t row) { return {a, 1, row}; }

template <int kRows, int kColumns>
HWY_INLINE void dot_tile(int64_t depth, const float* a, int64_t a_row, const float* b, int64_t b_row,
                         float* c, int64_t c_row) {
  const hn::ScalableTag<float> d;
  const int64_t lanes = hn::Lanes(d);
  hn::Vec<decltype(d)> sum[kRows][kColumns];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) sum[r][j] = hn::Zero(d);
  for (int64_t i = 0; i < depth; i += lanes) {
    const auto mask = hn::FirstN(d, static_cast<size_t>(depth - i));
    hn::Vec<decltype(d)> right[kColumns];
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) right[j] = hn::MaskedLoad(mask, d, b + j * b_row + i);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const auto left = hn::MaskedLoad(mask, d, a + r * a_row + i);
#pragma GCC unroll 4
      for (int j = 0; j < kColumns; ++j) sum[r][j] = hn::MulAdd(left, right[j], sum[r][j]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) c[r * c_row + j] = hn::GetLane(hn::SumOfLanes(d, sum[r][j]));
}

// C [rows, columns] = A [rows, depth] B', B [columns, depth]: rows against rows, for few of them.
HWY_ATTR inline void dots(int64_t rows, int64_t columns, int64_t depth, const float* a, int64_t a_row,
                          const float* b, int64_t b_row, float* c, int64_t c_row) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t j = 0;
    for (; j + kDotColumns <= columns; j += kDotColumns)
      dot_tile<4, kDotColumns>(depth, a + r * a_row, a_row, b + j * b_row, b_row, c + r * c_row + j, c_row);
    for (; j < columns; ++j)
      dot_tile<4, 1>(depth, a + r * a_row, a_row, b + j * b_row, b_row, c + r * c_row + j, c_row);
  }
  for (; r + 2 <= rows; r += 2) {
    int64_t j = 0;
    for (; j + 2 <= columns; j += 2)
      dot_tile<2, 2>(depth, a + r * a_row, a_row, b + j * b_row, b_row, c + r * c_row + j, c_row);
    for (; j < columns; ++j)
      dot_tile<2, 1>(depth, a + r * a_row, a_row, b + j * b_row, b_row, c + r * c_row + j, c_row);
  }
  for (; r < rows; ++r)
    for (int64_t j = 0; j < columns; ++j)
      dot_tile<1, 1>(depth, a + r * a_row, a_row, b + j * b_row, b_row, c + r * c_row + j, c_row);
}

#if HWY_TARGET != HWY_SCALAR
// Four rows of one vector of columns: interleaved in 128-bit blocks, each block is then a column.
HWY_INLINE void transpose_four(const float* from, int64_t from_row, float* to, int64_t to_row) {
  const hn::ScalableTag<float> d;
  const hn::Repartition<double, decltype(d)> pairs;
  const auto a = hn::LoadU(d, from), b = hn::LoadU(d, from + from_row), c = hn::LoadU(d, from + 2 * from_row),
             e = hn::LoadU(d, from + 3 * from_row);
  const auto ab = hn::BitCast(pairs, hn::InterleaveLower(d, a, b)),
             ce = hn::BitCast(pairs, hn::InterleaveLower(d, c, e));
  const auto ab_up = hn::BitCast(pairs, hn::InterleaveUpper(d, a, b)),
             ce_up = hn::BitCast(pairs, hn::InterleaveUpper(d, c, e));
  HWY_ALIGN float columns[4][HWY_LANES(float)];
  hn::Store(hn::BitCast(d, hn::InterleaveLower(pairs, ab, ce)), d, columns[0]);
  hn::Store(hn::BitCast(d, hn::InterleaveUpper(pairs, ab, ce)), d, columns[1]);
  hn::Store(hn::BitCast(d, hn::InterleaveLower(pairs, ab_up, ce_up)), d, columns[2]);
  hn::Store(hn::BitCast(d, hn::InterleaveUpper(pairs, ab_up, ce_up)), d, columns[3]);
  for (int64_t j = 0; j < static_cast<int64_t>(hn::Lanes(d)); j += 4)
    for (int64_t n = 0; n < 4; ++n) std::memcpy(to + (j + n) * to_row, columns[n] + j, 4 * sizeof(float));
}
#endif

// to [columns, rows] = from [rows, columns]'
inline void transpose(int64_t rows, int64_t columns, const float* HWY_RESTRICT from, int64_t from_row,
                      float* HWY_RESTRICT to, int64_t to_row) {
#if HWY_TARGET != HWY_SCALAR
  const auto lanes = static_cast<int64_t>(hn::Lanes(hn::ScalableTag<float>()));
  const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / lanes * lanes;
  for (int64_t r = 0; r < whole_rows; r += 4)
    for (int64_t j = 0; j < whole_columns; j += lanes)
      transpose_four(from + r * from_row + j, from_row, to + j * to_row + r, to_row);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = r < whole_rows ? whole_columns : 0; j < columns; ++j)
      to[j * to_row + r] = from[r * from_row + j];
  return;
#endif
  constexpr int64_t kBlock = 16;
  for (int64_t r0 = 0; r0 < rows; r0 += kBlock) {
    const int64_t r1 = r0 + kBlock < rows ? r0 + kBlock : rows;
    for (int64_t j = 0; j < columns; ++j)
      for (int64_t r = r0; r < r1; ++r) to[j * to_row + r] = from[r * from_row + j];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::simd
HWY_AFTER_NAMESPACE();

#endif  // WEFT_OPS_SIMD_GEMM_INL_H_
