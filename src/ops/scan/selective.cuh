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

// Whether a document starts at token t + lane, of kTokens tokens from t on; as it was loaded, for bits_of later. `rows` is
// the first row of the sequence.
template <int kTokens>
__device__ __forceinline__ uint32_t start_at(const CudaSelectiveScan& p, int64_t rows, int64_t t,
                                             int64_t end) {
  const int lane = threadIdx.x % 32;
  return p.starts && lane < kTokens && t >= 0 && t + lane < end ? p.starts[rows + t + lane] : 0;
}
// Bit l: what lane l has is not zero.
__device__ __forceinline__ unsigned bits_of(uint32_t flag) { return __ballot_sync(0xffffffff, flag != 0); }

// kCount neighbours in shared memory.
template <int kCount>
__device__ __forceinline__ void read_floats(float (&x)[kCount], const float* from) {
  if constexpr (kCount == 1) {
    x[0] = *from;
  } else if constexpr (kCount == 2) {
    const float2 two = *reinterpret_cast<const float2*>(from);
    x[0] = two.x, x[1] = two.y;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + i);
      x[i] = four.x, x[i + 1] = four.y, x[i + 2] = four.z, x[i + 3] = four.w;
    }
  }
}

// Parts of a sequence that run side by side in the backward pass, where the gradients of states go from the last to the
// first: selective_carry leaves what each part but the first hands to the one before when it gets none.
int64_t selective_backward_segments(const CudaSelectiveScan& p);
int64_t selective_channel_blocks(const CudaSelectiveScan& p);
int64_t selective_gradient_states();
CudaStatus selective_carry(const CudaSelectiveGradient& g, int64_t segments, void* stream);
CudaStatus selective_backward(const CudaSelectiveGradient& g, void* stream);

}  // namespace weft::kernels
