// The mark of a chunk of a low rank erase, and documents in a gentle one: masks from a bit for every token that begins one.
#pragma once

#include "ops/linear_attention/vector_tiles.cuh"

namespace weft::kernels::low_rank {
using namespace vector_decay;

// What a gentle chunk is marked with: beside a bit for every token that begins a document, whether it is gentle and whether
// its decays count from its middle on instead of its begin. Zero: not gentle.
constexpr uint32_t kGentle = 1u << 16, kFromMiddle = 1u << 17;
__device__ __forceinline__ uint32_t starts_of(uint32_t mark) { return mark & 0xffff; }
// The first token of the document of token t, or of the chunk.
__device__ __forceinline__ int begin_of(uint32_t starts, int t) {
  return 31 - __clz((starts & ((2u << t) - 1)) | 1);
}
// Bits of the tokens that the state before the chunk reaches, and of those that reach the state behind it.
__device__ __forceinline__ uint32_t before_starts(uint32_t starts) { return (starts & -starts) - 1; }
__device__ __forceinline__ uint32_t behind_starts(uint32_t starts) {
  return starts ? ~0u << (31 - __clz(starts)) : ~0u;
}

// Keeps of a first factor [., 16 tokens] only the tokens with a bit.
struct TokenMasks {
  uint32_t half[2];
  __device__ __forceinline__ explicit TokenMasks(uint32_t bits) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t own = bits >> (threadIdx.x % 4 * 2 + i * 8);
      half[i] = (own & 1) * 0xffffu | (own & 2) * 0x7fff8000u;
    }
  }
  __device__ __forceinline__ void keep(uint32_t (&a)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] &= half[i / 2];
  }
};
// Of a first factor that is a matrix of pairs only those within a document.
__device__ __forceinline__ void keep_documents(uint32_t starts, uint32_t (&a)[4]) {
  const int row = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int begin = begin_of(starts, row + i % 2 * 8);
    if (begin_of(starts, column + i / 2 * 8) != begin) a[i] &= 0xffff0000u;
    if (begin_of(starts, column + 1 + i / 2 * 8) != begin) a[i] &= 0xffffu;
  }
}

}  // namespace weft::kernels::low_rank
