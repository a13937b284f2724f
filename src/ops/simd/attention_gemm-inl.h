// Small matrix products for the tiles of attention: operands in cache, everything fp32.
// Included by kernel_cpu.cc files after hwy/highway.h; compiled once for each instruction set.
#if defined(WEFT_OPS_SIMD_ATTENTION_GEMM_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_OPS_SIMD_ATTENTION_GEMM_INL_H_
#undef WEFT_OPS_SIMD_ATTENTION_GEMM_INL_H_
#else
#define WEFT_OPS_SIMD_ATTENTION_GEMM_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "hwy/highway.h"
#include "ops/simd/lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weft::simd {
namespace HWY_NAMESPACE {

// A(i, k) stands at data[i * row + k * step]: any matrix of floats, also a transposed one.
struct Left {
  const float* data;
  int64_t row;
  int64_t step;
};

// Rows of floats, `row` apart.
struct Right {
  const float* data;
  int64_t row;
};

struct Result {
  float* data;
  int64_t row;
};

// Vectors of a register tile: with 4 rows, enough sums to hide the latency of a fused multiply-add.
#if HWY_TARGET == HWY_AVX3
constexpr int64_t kTileVectors = 4;
#else
constexpr int64_t kTileVectors = 2;
#endif
constexpr int64_t kTileRows = 4;

// kRows x kVectors vectors of the result in registers. With kPart only the first `left` lanes of the one
// vector exist.
template <int64_t kRows, int64_t kVectors, bool kPart, bool kAdd>
HWY_INLINE void gemm_tile(const Left& a, const Right& b, const Result& c, int64_t depth, int64_t left) {
  const Floats d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto load = [&](const float* from)
                        HWY_ATTR { return kPart ? load_part(d, from, left) : hn::LoadU(d, from); };
  VecF sum[kRows][kVectors];
  for (int64_t i = 0; i < kRows; ++i)
    for (int64_t j = 0; j < kVectors; ++j)
      sum[i][j] = kAdd ? load(c.data + i * c.row + j * lanes) : hn::Zero(d);
  for (int64_t k = 0; k < depth; ++k) {
    VecF right[kVectors];
    for (int64_t j = 0; j < kVectors; ++j) right[j] = load(b.data + k * b.row + j * lanes);
    for (int64_t i = 0; i < kRows; ++i) {
      const VecF l = hn::Set(d, a.data[i * a.row + k * a.step]);
      for (int64_t j = 0; j < kVectors; ++j) sum[i][j] = hn::MulAdd(l, right[j], sum[i][j]);
    }
  }
  for (int64_t i = 0; i < kRows; ++i)
    for (int64_t j = 0; j < kVectors; ++j) {
      float* to = c.data + i * c.row + j * lanes;
      if (kPart)
        store_part(sum[i][j], d, to, left);
      else
        hn::StoreU(sum[i][j], d, to);
    }
}

template <int64_t kRows, bool kAdd>
HWY_INLINE void gemm_panel(const Left& a, const Right& b, const Result& c, int64_t depth, int64_t columns) {
  const auto lanes = static_cast<int64_t>(hn::Lanes(Floats()));
  int64_t j = 0;
  const auto right = [&] { return Right{b.data + j, b.row}; };
  const auto result = [&] { return Result{c.data + j, c.row}; };
  for (; j + kTileVectors * lanes <= columns; j += kTileVectors * lanes)
    gemm_tile<kRows, kTileVectors, false, kAdd>(a, right(), result(), depth, 0);
  for (; j + lanes <= columns; j += lanes) gemm_tile<kRows, 1, false, kAdd>(a, right(), result(), depth, 0);
  if (j < columns) gemm_tile<kRows, 1, true, kAdd>(a, right(), result(), depth, columns - j);
}

// C = A B, or C += A B with kAdd: A [rows, depth], B [depth, columns]. The sum over `depth` runs in order,
// starting from C, so that a product cut along `depth` gives the same bits.
template <bool kAdd>
void gemm(const Left& a, const Right& b, const Result& c, int64_t rows, int64_t depth, int64_t columns) {
  for (int64_t i = 0; i < rows; i += kTileRows) {
    const Left left{a.data + i * a.row, a.row, a.step};
    const Result result{c.data + i * c.row, c.row};
    switch (std::min(kTileRows, rows - i)) {
      case 1:
        gemm_panel<1, kAdd>(left, b, result, depth, columns);
        break;
      case 2:
        gemm_panel<2, kAdd>(left, b, result, depth, columns);
        break;
      case 3:
        gemm_panel<3, kAdd>(left, b, result, depth, columns);
        break;
      default:
        gemm_panel<4, kAdd>(left, b, result, depth, columns);
        break;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weft::simd
HWY_AFTER_NAMESPACE();

#endif
