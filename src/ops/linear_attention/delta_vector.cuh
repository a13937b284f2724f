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
template <class T, int kStride, bool kRolled = false>
__device__ __forceinline__ void load_decays(float* to, const CudaLinearAttention& p, int b, int h,
                                            int64_t first, int channel, int width) {
  const int valid = valid_tokens(p, first);
  if (p.log_decay.type == CudaType::fp32) {
    const float* rows = row_at<float>(p.log_decay, b, first, h) + channel;
    const int shift = 29 - __clz(width);  // of copies in a row
    const auto copy = [&](int i) {
      const int t = i >> shift, group = i & ((1 << shift) - 1);
      copy_async16(to + t * kStride + group * 4, rows + (t < valid ? t * p.log_decay.token : 0) + group * 4,
                   t < valid);
    };
    if constexpr (kRolled) {
#pragma unroll 1
      for (int i = threadIdx.x; i < width * 16; i += blockDim.x) copy(i);
    } else {
      for (int i = threadIdx.x; i < width * 16; i += blockDim.x) copy(i);
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

// 8 floats in shared memory, at a multiple of 16 bytes; 8 numbers of type T as 16 bytes.
__device__ __forceinline__ void load_floats(float (&x)[8], const float* from) {
#pragma unroll
  for (int i = 0; i < 8; i += 4) {
    const float4 y = *reinterpret_cast<const float4*>(from + i);
    x[i] = y.x, x[i + 1] = y.y, x[i + 2] = y.z, x[i + 3] = y.w;
  }
}
template <class T>
__device__ __forceinline__ void load_numbers(float (&x)[8], const T* from) {
  const uint4 y = *reinterpret_cast<const uint4*>(from);
  const uint32_t ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 z = unpack<T>(ys[i]);
    x[2 * i] = z.x, x[2 * i + 1] = z.y;
  }
}
template <class T>
__device__ __forceinline__ void store_numbers(T* to, const float (&x)[8]) {
  *reinterpret_cast<uint4*>(to) =
      make_uint4(pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]), pack<T>(x[6], x[7]));
}
// x by y, channel by channel.
__device__ __forceinline__ void multiply_floats(float (&to)[8], const float (&x)[8], const float (&y)[8]) {
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = x[i] * y[i];
}

// Rows and columns of a token, 8 channels from `channel` on, from the sums of its decays and its block's total.
struct DecayedRow {
  float query[8], key[8], column[8];
  template <class T>
  __device__ __forceinline__ DecayedRow(const T* q, const T* k, const float* sums, const float* totals) {
    float sum[8], total[8], decay[8];
    load_floats(sum, sums), load_floats(total, totals);
    load_numbers(query, q), load_numbers(column, k);
#pragma unroll
    for (int i = 0; i < 8; ++i) decay[i] = fast_exp2(sum[i]);
    multiply_floats(query, query, decay), multiply_floats(key, column, decay);
#pragma unroll
    for (int i = 0; i < 8; ++i) column[i] *= fast_exp2(total[i] - sum[i]);
  }
};

}  // namespace weft::kernels::delta
