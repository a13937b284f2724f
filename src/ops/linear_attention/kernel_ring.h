// CPU kernels of decoding with a ring of updates: no torch. Letters as in ring.h.
#pragma once

#include "ops/linear_attention/kernel_dplr.h"

namespace weft::kernels {

// The inputs of one token; p.state is the ring's state, p.y the output. erase_read.data null: no low rank erase.
struct RingProblem : DplrProblem {
  int64_t capacity = 0, rows = 1, decay_width = 0, keep = 0;  // N, R, W
  const int64_t* length = nullptr;                            // [B] before the token; the caller moves it on
  float *keys = nullptr, *values = nullptr, *decays = nullptr;
};

// Entries that sequence b has when its token comes in: a document start drops them, a full ring keeps `keep`.
inline int64_t ring_length(const RingProblem& p, int64_t b) {
  if (p.fresh && p.fresh[b]) return 0;
  return p.length[b] == p.capacity ? p.keep : p.length[b];
}

// Floats of scratch that one thread needs.
int64_t ring_scratch(const RingProblem& p);

// Tasks as in kernel.h. The step folds and drops as ring_length says and writes entry ring_length(p, b).
void linear_attention_ring_step(simd::Isa isa, const RingProblem& p, float* scratch, int64_t begin,
                                int64_t end);
// All entries into the state.
void linear_attention_ring_fold(simd::Isa isa, const RingProblem& p, float* scratch, int64_t begin,
                                int64_t end);

}  // namespace weft::kernels
