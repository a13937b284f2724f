// CPU kernels of linear attention with a diagonal plus low rank erase: no torch.
#pragma once

#include "ops/linear_attention/kernel.h"

namespace weft::kernels {

struct DplrProblem : LinearAttentionProblem {
  HeadRows erase_read, erase_write;  // a and b
  int64_t erase_heads = 0;           // theirs: heads or key_heads
  // [B, T, H, V] what a of every token recalls: written by the forward if not null, read by the backward.
  float* recalled = nullptr;
};

// A null output is not wanted. Gradients of key heads are for value heads: the caller sums those that share
// one.
struct DplrGradients {
  const float* dy = nullptr;                              // [B, T, H, V]
  const float* dstate = nullptr;                          // [B, H, K, V] or null for zeros
  float *dq = nullptr, *dk = nullptr;                     // [B, T, H, K]
  float *derase_read = nullptr, *derase_write = nullptr;  // [B, T, H, K]
  float* dv = nullptr;                                    // [B, T, H, V]
  float* dlog_decay = nullptr;                            // [B, T, H] or [B, T, H, K]
  float* dwrite = nullptr;                                // [B, T, H]
  float* dinitial = nullptr;                              // [B, H, K, V]
};

// Floats of scratch that one thread needs.
int64_t dplr_forward_scratch(const DplrProblem& p);
int64_t dplr_backward_scratch(const DplrProblem& p);
int64_t dplr_step_scratch(const DplrProblem& p);

// Tasks, chunks, states and the step as in kernel.h.
void dplr_forward(simd::Isa isa, const DplrProblem& p, float* scratch, int64_t begin, int64_t end);
void dplr_backward(simd::Isa isa, const DplrProblem& p, const DplrGradients& g, float* scratch, int64_t begin,
                   int64_t end);
void dplr_step(simd::Isa isa, const DplrProblem& p, float* scratch, int64_t begin, int64_t end);

}  // namespace weft::kernels
