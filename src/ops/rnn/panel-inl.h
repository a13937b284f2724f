// Products of a few rows with a matrix that has been packed in panels and may come from far away: while one block
// of a panel is used, the next is fetched, a little with every step. Included by the kernel files for each
// instruction set.
#if defined(WEFT_OPS_RNN_PANEL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_OPS_RNN_PANEL_INL_H_
#undef WEFT_OPS_RNN_PANEL_INL_H_
#else
#define WEFT_OPS_RNN_PANEL_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "ops/rnn/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_AVX3
constexpr int kPanelRows = 12;  // 24 sums in 32 registers
#else
constexpr int kPanelRows = 6;  // 12 sums in 16 registers
#endif
constexpr int64_t kPanelDepth =
    64;  // rows of a panel in the first-level cache, and as many that are on their way

// A left operand: element (r, k) at data[r * row + k * column].
struct LeftRows {
  const float* data;
  int64_t row, column;
};

// What to fetch: `step` bytes with each row of the panel.
struct Fetch {
  const char* from;
  int64_t step;
};

// out [kRows, two vectors] += left panel, of which `columns` exist in out; kWhole: all.
template <int kRows, bool kWhole>
HWY_INLINE void panel_tile(int64_t columns, int64_t depth, LeftRows left, const float* HWY_RESTRICT panel,
                           float* HWY_RESTRICT out, int64_t out_row, Fetch fetch) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto low = hn::FirstN(d, static_cast<size_t>(columns));
  const auto high = hn::FirstN(d, static_cast<size_t>(columns > lanes ? columns - lanes : 0));
  hn::Vec<decltype(d)> sum0[kRows], sum1[kRows];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    const float* const from = out + r * out_row;
    sum0[r] = kWhole ? hn::LoadU(d, from) : hn::MaskedLoad(low, d, from);
    // With one lane a masked load reads although the mask is off, so nothing is loaded behind the last column.
    sum1[r] = kWhole            ? hn::LoadU(d, from + lanes)
              : columns > lanes ? hn::MaskedLoad(high, d, from + lanes)
                                : hn::Zero(d);
  }
  for (int64_t k = 0; k < depth; ++k) {
    hwy::Prefetch(fetch.from + k * fetch.step);
    const auto right0 = hn::LoadU(d, panel + k * kRnnPanel),
               right1 = hn::LoadU(d, panel + k * kRnnPanel + lanes);
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const auto factor = hn::Set(d, left.data[r * left.row + k * left.column]);
      sum0[r] = hn::MulAdd(factor, right0, sum0[r]);
      sum1[r] = hn::MulAdd(factor, right1, sum1[r]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    float* const to = out + r * out_row;
    if (kWhole) {
      hn::StoreU(sum0[r], d, to);
      hn::StoreU(sum1[r], d, to + lanes);
    } else {
      hn::BlendedStore(sum0[r], low, d, to);
      hn::BlendedStore(sum1[r], high, d, to + lanes);
    }
  }
}

template <int kRows, bool kWhole>
HWY_INLINE void panel_rows(int64_t rows, int64_t columns, int64_t depth, LeftRows left, const float* panel,
                           float* out, int64_t out_row, Fetch fetch) {
  if constexpr (kRows > 0) {
    if (rows == kRows)
      panel_tile<kRows, kWhole>(columns, depth, left, panel, out, out_row, fetch);
    else
      panel_rows<kRows - 1, kWhole>(rows, columns, depth, left, panel, out, out_row, fetch);
  }
}

// out [rows, columns] += left [rows, depth] panel [depth, kRnnPanel]; behind the panel, `next` will be used. Every
// element is summed in the order of the depth.
HWY_ATTR inline void panel_product(int64_t rows, int64_t columns, int64_t depth, LeftRows left,
                                   const float* panel, const float* next, float* out, int64_t out_row) {
  const int64_t pair = 2 * static_cast<int64_t>(hn::Lanes(hn::ScalableTag<float>()));
  const int64_t row_tiles = (rows + kPanelRows - 1) / kPanelRows, column_tiles = (columns + pair - 1) / pair;
  const int64_t row_bytes = kRnnPanel * sizeof(float), tiles = row_tiles * column_tiles;
  const int64_t step = (row_bytes + tiles - 1) / tiles;
  for (int64_t k = 0; k < depth; k += kPanelDepth) {
    const int64_t block = depth - k < kPanelDepth ? depth - k : kPanelDepth;
    const float* const coming = k + block < depth ? panel + (k + block) * kRnnPanel : next;
    Fetch fetch{reinterpret_cast<const char*>(coming), step};
    for (int64_t column = 0; column < columns; column += pair)
      for (int64_t i = 0, row = 0; i < row_tiles; ++i) {
        const int64_t count =
            (rows - row + row_tiles - i - 1) / (row_tiles - i);  // tiles of much the same size
        const LeftRows from{left.data + row * left.row + k * left.column, left.row, left.column};
        const float* const part = panel + k * kRnnPanel + column;
        float* const to = out + row * out_row + column;
        if (column + pair <= columns)
          panel_rows<kPanelRows, true>(count, pair, block, from, part, to, out_row, fetch);
        else
          panel_rows<kPanelRows, false>(count, columns - column, block, from, part, to, out_row, fetch);
        row += count;
        fetch.from += block * step;
      }
  }
}

}  // namespace weft::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
