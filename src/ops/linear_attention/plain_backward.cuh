// What the two steps of the plain form's backward share.
#pragma once

#include "ops/linear_attention/plain.cuh"

namespace weft::kernels::plain {

constexpr int kBackwardWarps = 8;

// What a row of the state gets: dq, dk, of an erase dk or derase_read (from S), and derase_write. Without what a token's
// own write gives its own read: q and the rows that are written get that from a sum over columns.
enum Output { kDq, kDk, kDread, kDwrite };
constexpr int outputs_of(Form form) { return form == Form::low_rank ? 4 : form == Form::delta ? 3 : 2; }
// Sums over columns: v . dvalue, recalled . dvalue; of dy with what is written (with a bonus, with v) and recalled.
enum Sum { kSumWrite, kSumRecalled, kSumValue, kSumRead, kSums };

inline int64_t slices_of(const CudaLinearAttention& p) {
  const int columns = kBackwardWarps * (rows_of(p) == 8 ? 4 : 8);
  return (p.value_width + columns - 1) / columns;
}

struct Scratch {
  float* rows = nullptr;    // [outputs, slices, B H, T, K]
  float* energy = nullptr;  // [slices, B H, intervals, K] at the start of each interval
  float* sums = nullptr;    // [kSums, slices, B H, T]
  float* bonus = nullptr;   // [B H, intervals, K]
  int64_t floats = 0;

  Scratch(const CudaLinearAttention& p, void* memory) {
    const auto take = [&](int64_t n) {
      float* at = memory ? static_cast<float*>(memory) + floats : nullptr;
      floats += (n + 3) / 4 * 4;
      return at;
    };
    const int64_t heads = p.batch * p.heads, slices = slices_of(p), intervals = intervals_of(p);
    rows = take(outputs_of(form_of(p)) * slices * heads * p.tokens * p.key_width);
    energy = take(slices * heads * intervals * p.key_width);
    sums = take(kSums * slices * heads * p.tokens);
    if (p.bonus) bonus = take(heads * intervals * p.key_width);
  }
};

// Sums over slices, and the gradients that follow from them.
CudaStatus finish(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g, const Scratch& scratch,
                  int64_t slices, cudaStream_t stream);

}  // namespace weft::kernels::plain
