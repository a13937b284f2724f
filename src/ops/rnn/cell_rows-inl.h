// Walks along the rows of a cell one vector at a time. Included by the cells' kernel files for each
// instruction set, after "ops/simd/targets.h".
#if defined(WEFT_OPS_RNN_CELL_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_OPS_RNN_CELL_ROWS_INL_H_
#undef WEFT_OPS_RNN_CELL_ROWS_INL_H_
#else
#define WEFT_OPS_RNN_CELL_ROWS_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "ops/rnn/cell_rows.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// Reads and writes one vector at offset i of a row: all lanes, or those of a mask at the end of the row.
struct Whole {
  int64_t i;
  HWY_INLINE V load(const float* row) const { return hn::LoadU(D(), row + i); }
  HWY_INLINE void store(V x, float* row) const { hn::StoreU(x, D(), row + i); }
};
struct Part {
  int64_t i;
  hn::Mask<D> mask;
  HWY_INLINE V load(const float* row) const { return hn::MaskedLoad(mask, D(), row + i); }
  HWY_INLINE void store(V x, float* row) const { hn::BlendedStore(x, mask, D(), row + i); }
};

// step(at) for all vectors of rows of n values.
template <class Step>
HWY_INLINE void for_each_vector(int64_t n, const Step& step) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(D()));
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) step(Whole{i});
  if (i < n) step(Part{i, hn::FirstN(D(), static_cast<size_t>(n - i))});
}

HWY_INLINE V one() { return hn::Set(D(), 1.0f); }
HWY_INLINE V one_minus_square(V x) { return hn::NegMulAdd(x, x, one()); }
HWY_INLINE V sigmoid_slope(V s) { return hn::NegMulAdd(s, s, s); }  // from the value: s (1 - s)

}  // namespace weft::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
