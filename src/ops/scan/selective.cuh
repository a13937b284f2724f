// What the forward and the backward kernels of selective_scan share.
#pragma once

#include "ops/cuda/vector.cuh"
#include "ops/scan/kernel_cuda_selective.h"

namespace weft::kernels {

// A part of a sequence; parts begin at multiples of the chunk.
struct Segment {
  int64_t index, begin, end;
};

__device__ __forceinline__ Segment segment_of(const CudaSelectiveScan& p, int64_t index, int64_t segments) {
  const int64_t chunks = (p.tokens + kCudaSelectiveChunk - 1) / kCudaSelectiveChunk;
  const int64_t each = (chunks + segments - 1) / segments * kCudaSelectiveChunk;
  const int64_t begin = min(index * each, p.tokens);
  return {index, begin, min(begin + each, p.tokens)};
}

// Between the passes `segments` holds [B segments, E, N] states or gradients and, here, [B segments, E] sums of delta,
// negative where a document starts in the segment.
__device__ __forceinline__ float* segment_steps(const CudaSelectiveScan& p, int64_t segments) {
  return p.segments + p.batch * segments * p.channels * p.states;
}

// Bit i: a document starts at token t + i; `rows` is the first row of the sequence.
template <int kTokens>
__device__ __forceinline__ unsigned starts_at(const CudaSelectiveScan& p, int64_t rows, int64_t t,
                                              int64_t end) {
  if (!p.starts) return 0;
  const int lane = threadIdx.x % 32;
  return __ballot_sync(0xffffffff, lane < kTokens && t + lane < end && p.starts[rows + t + lane] != 0);
}

CudaStatus selective_backward(const CudaSelectiveGradient& g, int64_t segments, void* stream);
int64_t selective_channel_blocks(const CudaSelectiveScan& p);

}  // namespace weft::kernels
