// CPU kernels of the rotary embedding: a table of cosines and sines per token, then its use on all heads. No
// torch.
#pragma once

#include <cstdint>

#include "ops/simd/isa.h"

namespace weft::kernels {

struct RopeProblem {
  const int64_t* positions = nullptr;   // [tokens]
  const double* frequencies = nullptr;  // [pairs] or [tokens, pairs], radians a position
  float* cosines = nullptr;             // [tokens, pairs]
  float* sines = nullptr;               // [tokens, pairs]
  const float* x = nullptr;             // [tokens, heads, width]
  float* y = nullptr;                   // [tokens, heads, width]
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t width = 0;
  int64_t pairs = 0;
  int64_t frequency_stride = 0;  // from token to token: 0 or pairs
  double magnitude = 1.0;        // of the table
  bool interleaved = false;
  bool backwards = false;  // turn by the negative angle
};

// Fills the table for tokens [begin, end). Angles are reduced in fp64: up to position 2^20 the error is that
// of rounding the result to fp32.
void rope_table(simd::Isa isa, const RopeProblem& p, int64_t begin, int64_t end);

// Turns the heads of tokens [begin, end).
void rope_turn(simd::Isa isa, const RopeProblem& p, int64_t begin, int64_t end);

}  // namespace weft::kernels
