// Tables of hashed n-grams of tokens (Qwen4-Exp): which row of one joint table each n-gram of each head has.
//   id(n, h; t) = ((m_0 x_t) xor (m_1 x_{t-1}) xor ... m_{n-1} x_{t-n+1}) mod p_h + offset_h     2 <= n <= N
// with odd multipliers m from a seed and a prime p of its own for every head.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace weft {

struct NgramHash {
  std::vector<int64_t> multipliers;  // [N]
  std::vector<int64_t> sizes;        // rows of each head's part of the table, primes; [(N - 1) heads]
  std::vector<int64_t> offsets;      // where the parts begin
  int64_t rows = 0;                  // of the whole table, a multiple of `multiple`
};

struct NgramOptions {
  int64_t vocab = 0;     // of tokens
  int64_t longest = 3;   // N
  int64_t heads = 8;     // of each n
  int64_t base = 0;      // the primes are the first ones from here on
  int64_t multiple = 1;  // the table is filled up to a multiple of this
  int64_t seed = 1234;
  int64_t index = 0;  // which of the model's tables this is; each has primes and multipliers of its own
};

NgramHash ngram_hash(const NgramOptions& options);

// x [N] tensors [B, T] int64, the tokens 0, 1, ... N - 1 before each -> rows of the table [B, T, (N - 1) heads].
at::Tensor ngram_rows(const NgramHash& hash, const std::vector<at::Tensor>& x);

}  // namespace weft
