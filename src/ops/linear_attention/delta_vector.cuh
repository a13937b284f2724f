// Delta rule with a vector decay: how products over the channels get the decays between their tokens.
//
// A chunk is cut into 4 blocks of 16 tokens. With G the sum of log decays from the start of a token's own block, and
// total(I) the sum over block I, the decay from token i of block I to token r of block R > I is
//   e^G[r]  e^(total(I + 1) + .. + total(R - 1))  e^(total(I) - G[i])
// and within a block e^G[r] e^-total(I) e^(total(I) - G[i]), whose middle factor is above one: it is used while it is far
// from overflow (kMostRange), else such blocks are added up pair by pair. Rows and columns with their factors are bf16
// whatever the inputs are, for its range.
#pragma once

#include "ops/linear_attention/delta.cuh"

namespace weft::kernels::delta {

constexpr int kBlock = 16, kBlocks = kChunk / kBlock;
constexpr float kMostRange = 100;  // of a block's total, base 2

// The log decays of `width` channels from `channel` on as fp32 rows kStride apart, zeros from the end of the sequence on: starts
// to copy them, or converts them. By all threads of the block.
template <class T, int kStride>
__device__ __forceinline__ void load_decays(float* to, const CudaLinearAttention& p, int b, int h,
                                            int64_t first, int channel, int width) {
  const int valid = valid_tokens(p, first);
  if (p.log_decay.type == CudaType::fp32) {
    const float* rows = row_at<float>(p.log_decay, b, first, h) + channel;
    const int shift = 29 - __clz(width);  // of copies in a row
    for (int i = threadIdx.x; i < width * 16; i += blockDim.x) {
      const int t = i >> shift, group = i & ((1 << shift) - 1);
      copy_async16(to + t * kStride + group * 4, rows + (t < valid ? t * p.log_decay.token : 0) + group * 4,
                   t < valid);
    }
    return;
  }
  const T* rows = row_at<T>(p.log_decay, b, first, h) + channel;
  const int shift = 28 - __clz(width);
#pragma unroll 4
  for (int i = threadIdx.x; i < width * 8; i += blockDim.x) {
    const int t = i >> shift, group = i & ((1 << shift) - 1);
    const uint4 x =
        *reinterpret_cast<const uint4*>(rows + (t < valid ? t * p.log_decay.token : 0) + group * 8);
    const auto* xs = reinterpret_cast<const uint32_t*>(&x);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 pair = unpack<T>(xs[j]);
      *reinterpret_cast<float2*>(to + t * kStride + group * 8 + 2 * j) =
          t < valid ? pair : make_float2(0.f, 0.f);
    }
  }
}

}  // namespace weft::kernels::delta
