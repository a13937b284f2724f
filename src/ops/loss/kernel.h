// CPU kernels of the cross-entropy: what happens to a block of logits between the matrix products. No torch.
#pragma once

#include <cstdint>

#include "ops/simd/isa.h"

namespace weft::kernels {

struct LossProblem {
  float* logits = nullptr;           // [rows, vocabulary]; the gradient replaces them in loss_gradient
  const int64_t* targets = nullptr;  // [rows]
  float* lse = nullptr;     // [rows], log of the sum of exp(scale logit); written forward, read backward
  float* losses = nullptr;  // [rows], forward only
  const float* upstream = nullptr;  // [rows], backward only
  int64_t vocabulary = 0;
  int64_t ignore = 0;  // rows with this target have loss 0 and no gradient
  float scale = 1;
};

// losses and lse of the rows [begin, end).
void loss_rows(simd::Isa isa, const LossProblem& p, int64_t begin, int64_t end);

// Rows [begin, end) of logits become upstream scale (softmax - onehot(target)).
void loss_gradient(simd::Isa isa, const LossProblem& p, int64_t begin, int64_t end);

}  // namespace weft::kernels
