// The mask program as the CPU kernels read it: limits for each query, positions and segments of padded blocks
// of keys.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/attention/attention.h"
#include "ops/attention/kernel.h"

namespace weft::ops {

// Contiguous, on the CPU; int32 but for the words of trees, which are int64.
struct MaskTables {
  at::Tensor queries;  // [5, B, T]: end of the range, last position before it, segment, prefix, position
  at::Tensor keys;     // [3, B, blocks, 64]: position (-1: empty), segment, phase of the stripe
  at::Tensor ranges;   // [B, blocks, 7]: kernels::KeyRange
  at::Tensor phases;   // [H], the phase that each head sees; undefined: no stripes
  at::Tensor tree, tree_begin;  // [B, T, W], [B]; undefined: no tree
};

// For T queries, S keys and H query heads. InputError for positions or segments that do not fit in 32 bits.
MaskTables make_mask_tables(const Mask& mask, int64_t batch, int64_t queries, int64_t keys, int64_t heads);

// Points the problem, whose sizes are set, to the tables.
void use_mask_tables(kernels::AttentionProblem& p, const MaskTables& tables);

}  // namespace weft::ops
