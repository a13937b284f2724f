// What a thread of the short convolution knows: where it stands, the rows that it reads, its taps.
#pragma once

#include "ops/conv/kernel_cuda.h"
#include "ops/cuda/vector.cuh"

namespace weft::kernels {
namespace {

constexpr int kWarps = 4;
constexpr int kAhead = 8;  // tokens that the forward asks for in advance
constexpr int kGroup = 4;  // tokens whose loads the backward has in flight together
constexpr int kBytes = 8;  // of an access

// Where a thread stands: its channels, its tile of tokens, and how many rows before the current one belong to its document.
struct Walk {
  int64_t sequence, channel;
  int begin, end, seen;
};

// Blocks that share a tensor's rows.
__host__ __device__ __forceinline__ int64_t tiles_of(const CudaShortConv& p, int tile) {
  return (p.tokens + kWarps * tile - 1) / (kWarps * tile);
}

__device__ __forceinline__ Walk walk_of(const CudaShortConv& p, int tile, int per_thread) {
  const int64_t groups = (p.channels + 32 * per_thread - 1) / (32 * per_thread), tiles = tiles_of(p, tile);
  const int64_t block = blockIdx.x, part = block / groups;
  Walk w;
  w.channel = (block % groups * 32 + threadIdx.x) * per_thread;
  w.begin = (static_cast<int>(part % tiles) * kWarps + static_cast<int>(threadIdx.y)) * tile;
  w.end = w.begin + tile;
  w.sequence = part / tiles;
  w.seen = 16;
  return w;
}

template <class T, int kTaps, int kVector>
struct Reader {
  const CudaShortConv& p;
  const T* x;
  const T* before;
  const uint8_t* starts;
  int tokens;

  __device__ Reader(const CudaShortConv& problem, const Walk& w)
      : p(problem), tokens(static_cast<int>(p.tokens)) {
    x = static_cast<const T*>(p.x) + w.sequence * p.x_batch + w.channel;
    before = p.before ? static_cast<const T*>(p.before) + w.sequence * (p.width - 1) * p.channels + w.channel
                      : nullptr;
    starts = p.starts ? p.starts + w.sequence * p.tokens : nullptr;
  }
  // Row t of x, zeros behind the last.
  __device__ __forceinline__ Pack<T, kVector> row(int t) const {
    return t < tokens ? load_pack<kVector>(x + int64_t{t} * p.x_token) : no_pack<T, kVector>();
  }
  // The same, of the state when t is negative, zeros where there is none.
  __device__ __forceinline__ Pack<T, kVector> any_row(int t) const {
    if (t >= 0) return row(t);
    const int past = static_cast<int>(p.width) - 1;
    return t >= -past && before ? load_pack<kVector>(before + int64_t{t + past} * p.channels)
                                : no_pack<T, kVector>();
  }
  __device__ __forceinline__ void advance(Walk& w, int t) const {
    if (starts && t >= 0 && t < tokens) w.seen = starts[t] ? 0 : min(w.seen + 1, 16);
  }
  // The rows before the tile; x[s] is the one s + 1 tokens before it.
  __device__ __forceinline__ void enter(Walk& w, float (&last)[kTaps - 1][kVector]) const {
#pragma unroll
    for (int s = kTaps - 1; s > 0; --s) {
      widen(last[s - 1], any_row(w.begin - s));
      advance(w, w.begin - s);
    }
  }
};

template <int kTaps, int kVector>
struct Taps {
  float weight[kTaps][kVector];  // weight[s] multiplies the input of s tokens ago
  float bias[kVector];

  __device__ __forceinline__ void load(const CudaShortConv& p, int64_t channel) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      bias[i] = p.bias ? element(p.bias, p.bias_type, channel + i) : 0.0f;
#pragma unroll
      for (int s = 0; s < kTaps; ++s)
        weight[s][i] =
            s < p.width ? element(p.weight, p.weight_type, (channel + i) * p.width + p.width - 1 - s) : 0.0f;
    }
  }
  // Sums before the activation; `reach` is the oldest row that counts.
  __device__ __forceinline__ void sums(float (&sum)[kVector], const float (&now)[kVector],
                                       const float (&last)[kTaps - 1][kVector], int reach) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[i] = fmaf(weight[0][i], now[i], bias[i]);
#pragma unroll
    for (int s = 1; s < kTaps; ++s)
      if (s <= reach)
#pragma unroll
        for (int i = 0; i < kVector; ++i) sum[i] = fmaf(weight[s][i], last[s - 1][i], sum[i]);
  }
};

template <int kRows, int kVector>
__device__ __forceinline__ void push(float (&rows)[kRows][kVector], const float (&row)[kVector]) {
#pragma unroll
  for (int s = kRows - 1; s > 0; --s)
#pragma unroll
    for (int i = 0; i < kVector; ++i) rows[s][i] = rows[s - 1][i];
#pragma unroll
  for (int i = 0; i < kVector; ++i) rows[0][i] = row[i];
}

}  // namespace
}  // namespace weft::kernels
