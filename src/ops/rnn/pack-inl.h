// Copies of R in panels, for products that read memory in order. Included by the kernel files for each
// instruction set.
#if defined(WEFT_OPS_RNN_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEFT_OPS_RNN_PACK_INL_H_
#undef WEFT_OPS_RNN_PACK_INL_H_
#else
#define WEFT_OPS_RNN_PACK_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "ops/rnn/kernel.h"

HWY_BEFORE_NAMESPACE();
namespace weft::kernels::HWY_NAMESPACE {

// to [in][kRnnPanel]: the outputs of one panel of R of a gate and head, transposed
inline void pack_panel_transposed(const RnnProblem& p, int64_t gate, int64_t head, int64_t panel, float* to) {
  constexpr int64_t kBlock = 16;  // a cache line of each output at a time
  const int64_t first = panel * kRnnPanel;
  const int64_t outputs = p.width - first < kRnnPanel ? p.width - first : kRnnPanel;
  const float* const from = p.recurrent + ((gate * p.heads + head) * p.width + first) * p.width;
  for (int64_t block = 0; block < p.width; block += kBlock) {
    const int64_t end = block + kBlock < p.width ? block + kBlock : p.width;
    for (int64_t o = 0; o < kRnnPanel; ++o)
      for (int64_t i = block; i < end; ++i)
        to[i * kRnnPanel + o] = o < outputs ? from[o * p.width + i] : 0.0f;
  }
}

}  // namespace weft::kernels::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
