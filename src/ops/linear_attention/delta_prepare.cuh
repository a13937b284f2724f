// Delta rule: what the kernels that prepare the chunks share, with and without vector decay.
#pragma once

#include "ops/linear_attention/delta.cuh"
#include "ops/linear_attention/triangular.cuh"

namespace weft::kernels::delta {

constexpr int kPrepareThreads = 256;

// All but what a vector decay lets through.
template <int K>
__device__ __forceinline__ void store_facts(Facts<K>& to, const CudaLinearAttention& p,
                                            const Tokens& tokens) {
  const auto* from = reinterpret_cast<const uint32_t*>(&tokens);
  for (int i = threadIdx.x; i < sizeof(Tokens) / 4; i += kPrepareThreads)
    reinterpret_cast<uint32_t*>(&to.tokens)[i] = from[i];
  for (int i = threadIdx.x; i < kChunk; i += kPrepareThreads) {
    to.read[i] = p.scale * tokens.from_before(i);
    to.keep[i] = tokens.to_after(i);
    to.erase[i] = tokens.beta[i] * tokens.from_before(i);
  }
  if (p.decay == Decay::vector) return;
  for (int i = threadIdx.x; i < K; i += kPrepareThreads) to.through[i] = tokens.through();
}

// 16 rows of P from `16 strip` on to device memory, from products of queries with keys.
template <class T>
__device__ __forceinline__ void store_reads(T* reads, int strip, const float (&read)[8][4], float scale,
                                            const Tokens& tokens) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (j / 2 > strip) continue;
      const int row = lane / 4 + 8 * half, r = 16 * strip + row, i = 8 * j + lane % 4 * 2;
      *reinterpret_cast<uint32_t*>(piece<16>(lower_block(reads, strip, j / 2), row, j % 2) + lane % 4 * 2) =
          pack<T>(scale * tokens.between(i, r) * read[j][2 * half],
                  scale * tokens.between(i + 1, r) * read[j][2 * half + 1]);
    }
}
// 16 rows of the system from `16 strip` on, from products of keys.
__device__ __forceinline__ void store_system(float* system, int strip, const float (&erased)[8][4],
                                             const Tokens& tokens) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < 8; ++j)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (j / 2 > strip) continue;
      const int r = 16 * strip + lane / 4 + 8 * half, i = 8 * j + lane % 4 * 2;
      const float beta = tokens.beta[r];
      *reinterpret_cast<float2*>(system + r * kTriangularStride + i) =
          make_float2(i < r ? beta * tokens.between(i, r) * erased[j][2 * half] : 0.f,
                      i + 1 < r ? beta * tokens.between(i + 1, r) * erased[j][2 * half + 1] : 0.f);
    }
}

// T in two parts to device memory.
template <class T>
__device__ __forceinline__ void store_solve(T* to, const float* solve) {
  for (int i = threadIdx.x; i < kPairs / 2; i += kPrepareThreads) {
    const int block = i / 128, row = block < 1 ? 0 : block < 3 ? 1 : block < 6 ? 2 : 3;
    const int column = block - row * (row + 1) / 2, r = i / 4 % 16, c = i / 64 % 2 * 8 + i % 4 * 2;
    const float* x = solve + (16 * row + r) * kTriangularStride + 16 * column + c;
    uint32_t high, low;
    split<T>(high, low, x[0], x[1]);
    reinterpret_cast<uint32_t*>(to)[i] = high;
    reinterpret_cast<uint32_t*>(to + kPairs)[i] = low;
  }
}

}  // namespace weft::kernels::delta
