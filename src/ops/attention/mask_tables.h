// The mask program as the CPU kernels read it: limits for each query, positions and segments of padded blocks
// of keys.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/attention/attention.h"
#include "ops/attention/kernel.h"

namespace weft::ops {

// All int32, contiguous, on the CPU.
struct MaskTables {
  at::Tensor queries;  // [3, B, T]: highest position seen, highest position no longer seen, segment
  at::Tensor keys;     // [2, B, blocks, 64]: position (-1: empty), segment
  at::Tensor ranges;   // [B, blocks, 5]: kernels::KeyRange
};

// For T queries and S keys. InputError for positions or segments that do not fit in 32 bits.
MaskTables make_mask_tables(const Mask& mask, int64_t batch, int64_t queries, int64_t keys);

// Points the problem, whose sizes are set, to the tables.
void use_mask_tables(kernels::AttentionProblem& p, const MaskTables& tables);

}  // namespace weft::ops
