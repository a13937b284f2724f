// CUDA kernels of the cross-entropy: what happens to a block of logits between the matrix products. No torch.
#pragma once

#include <cstdint>

#include "ops/cuda/types.h"

namespace weft::kernels {

struct CudaLoss {
  int64_t rows = 0, vocabulary = 0;
  CudaType type = CudaType::fp32;
  void* logits = nullptr;            // [rows, vocabulary]; the gradient replaces them in gradient()
  int64_t row = 0;                   // elements between rows
  const int64_t* targets = nullptr;  // [rows]; one outside the vocabulary makes its loss NaN
  float* lse = nullptr;              // [rows], log2 of the sum of exp(scale logit); written by losses()
  float* losses = nullptr;           // [rows], losses() only
  const float* upstream = nullptr;   // [rows], gradient() only
  int64_t ignore = 0;                // rows with this target have loss 0 and no gradient
  float scale = 1;
};

struct LossCuda {
  CudaStatus (*losses)(const CudaLoss& p, void* stream);
  // Rows of logits become upstream scale (softmax - onehot(target)).
  CudaStatus (*gradient)(const CudaLoss& p, void* stream);
};

const LossCuda& loss_cuda();

}  // namespace weft::kernels
