// Delta rule, forward on Hopper, without vector decay: what is in shared memory, and what is read beside it.
#pragma once

#include "ops/cuda/vector.cuh"
#include "ops/linear_attention/delta_sm90.cuh"
#include "ops/linear_attention/triangular.cuh"

namespace weft::kernels::delta {
namespace {

constexpr int kPrepareThreads = 128;

// With two places for what is prepared, a chunk is prepared while the one before is passed. A narrow block has one: it shares a
// multiprocessor with another block, and works on one side at a time.
template <class T, int K, int kGroups>
struct Shared {
  static constexpr bool kNarrow = K == 64 && kGroups == 1;
  static constexpr int kSolved = kNarrow ? 1 : 2, kStages = 3;
  struct Rows {
    T keys[kChunk * K], queries[kChunk * K], values[kChunk * 64 * kGroups];  // panels
  };
  struct Solved {
    T solve[2 * kSquare], reads[kSquare];  // T in two parts, P
  };
  Rows rows[kStages];
  Solved solved[kSolved];
  Facts<K> facts[kSolved];
  InverseTiles<T> inverse;
  uint64_t loaded[kStages];
  float to_end[kChunk];  // a token's decay to the end of its block of 16
};

// The inputs as the copy engine sees them, boxes of 64 rows of all panels of a block.
struct Inputs {
  CUtensorMap keys, queries, values;
};

// What forward_chunk reads.
template <class T, int K>
struct View {
  Panels<T> keys, queries, values;
  const T *solve, *reads;
  const Facts<K>& facts;
};

// Which segments of every sequence a launch is about.
struct Segments {
  int first, count;
};

// What a lane needs of its two tokens of chunk c, as it lies in memory: nothing waits for it until token_pair.
struct TokenBits {
  uint32_t decay[2] = {}, start[2] = {};
  float beta[2] = {}, write[2] = {};
};
__device__ __forceinline__ TokenBits load_token_bits(const CudaLinearAttention& p, int b, int h, int c) {
  TokenBits x;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t t = min(static_cast<int64_t>(c) * kChunk + threadIdx.x % 32 * 2 + i, p.tokens - 1);
    const auto at = [&](const CudaRows& rows) { return b * rows.batch + t * rows.token + h * rows.head; };
    if (p.decay == Decay::scalar)
      x.decay[i] = element_bits(p.log_decay.data, p.log_decay.type, at(p.log_decay));
    if (p.starts) x.start[i] = p.starts[b * p.tokens + t];
    x.beta[i] = static_cast<const float*>(p.beta.data)[at(p.beta)];
    x.write[i] = static_cast<const float*>(p.write.data)[at(p.write)];
  }
  return x;
}
__device__ __forceinline__ TokenPair token_pair(const CudaLinearAttention& p, const TokenBits& bits, int c) {
  TokenPair x;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (static_cast<int64_t>(c) * kChunk + threadIdx.x % 32 * 2 + i >= p.tokens) continue;
    if (p.decay == Decay::scalar) x.decay[i] = bounded_log2(from_bits(bits.decay[i], p.log_decay.type));
    x.start[i] = bits.start[i] != 0, x.beta[i] = bits.beta[i], x.write[i] = bits.write[i];
  }
  return x;
}

}  // namespace
}  // namespace weft::kernels::delta
