// Softmax over keys that come tile by tile, scores as a product leaves them (kernel_cuda_tile.cuh).
#pragma once

#include "ops/attention/kernel_cuda_mask.cuh"

namespace weft::kernels {

// Running largest score and sum of exponentials of a lane's two rows, and the online softmax over a tile: scores
// become exponentials, `shrink` what earlier results are to be multiplied by.
struct OnlineSoftmax {
  float largest[2] = {kMinusInfinity, kMinusInfinity};
  float sum[2] = {0, 0};  // of this lane's columns

  template <int kTiles>
  __device__ __forceinline__ void step(float unit, float (&s)[kTiles][4], float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float now = largest[r];
#pragma unroll
      for (int j = 0; j < kTiles; ++j) now = fmaxf(now, fmaxf(s[j][2 * r], s[j][2 * r + 1]));
      now = fmaxf(now, __shfl_xor_sync(0xffffffff, now, 1));
      now = fmaxf(now, __shfl_xor_sync(0xffffffff, now, 2));
      const float base = now == kMinusInfinity ? 0 : now * unit;
      shrink[r] = fast_exp2(largest[r] * unit - base);
      largest[r] = now;
      float total = 0;
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) {
          s[j][i] = fast_exp2(fmaf(s[j][i], unit, -base));
          total += s[j][i];
        }
      sum[r] = sum[r] * shrink[r] + total;
    }
  }

  // The same, but what exponents are relative to follows the largest only when that has grown by more than kSlack (of
  // exponents), for some row of the warp; returns whether, else shrink is not set.
  template <int kTiles>
  __device__ __forceinline__ bool step_seldom(float unit, float (&s)[kTiles][4], float (&shrink)[2]) {
    constexpr float kSlack = 8;
    float now[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      now[r] = largest[r];
#pragma unroll
      for (int j = 0; j < kTiles; ++j) now[r] = fmaxf(now[r], fmaxf(s[j][2 * r], s[j][2 * r + 1]));
      now[r] = fmaxf(now[r], __shfl_xor_sync(0xffffffff, now[r], 1));
      now[r] = fmaxf(now[r], __shfl_xor_sync(0xffffffff, now[r], 2));
    }
    const bool grown = __any_sync(
        0xffffffff, now[0] * unit > largest[0] * unit + kSlack || now[1] * unit > largest[1] * unit + kSlack);
    if (grown)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        shrink[r] = now[r] == kMinusInfinity ? 1 : fast_exp2((largest[r] - now[r]) * unit);
        sum[r] *= shrink[r];
        largest[r] = now[r];
      }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float base = largest[r] == kMinusInfinity ? 0 : largest[r] * unit;
      float total = 0;
#pragma unroll
      for (int j = 0; j < kTiles; ++j)
#pragma unroll
        for (int i = 2 * r; i < 2 * r + 2; ++i) {
          s[j][i] = fast_exp2(fmaf(s[j][i], unit, -base));
          total += s[j][i];
        }
      sum[r] += total;
    }
    return grown;
  }

  // The whole sums; lse natural.
  __device__ __forceinline__ void finish(float unit, float (&lse)[2], float (&inverse)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float total = warp_sum<4>(sum[r]);
      inverse[r] = total == 0 ? 0 : 1 / total;
      lse[r] = total == 0 ? kMinusInfinity : largest[r] * unit * kLn2 + logf(total);
    }
  }
};

}  // namespace weft::kernels
