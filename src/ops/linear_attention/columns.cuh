// Four columns of a state side by side, as the decoding kernels hold them.
#pragma once

#include "ops/cuda/device.cuh"

namespace weft::kernels::plain {

__device__ __forceinline__ float4 operator+(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
__device__ __forceinline__ float4 operator*(float f, const float4& a) {
  return {f * a.x, f * a.y, f * a.z, f * a.w};
}
__device__ __forceinline__ float4 exchange(const float4& a, int step) {
  return {__shfl_xor_sync(0xffffffff, a.x, step), __shfl_xor_sync(0xffffffff, a.y, step),
          __shfl_xor_sync(0xffffffff, a.z, step), __shfl_xor_sync(0xffffffff, a.w, step)};
}
__device__ __forceinline__ float part(const float4& a, int i) {
  return i == 0 ? a.x : i == 1 ? a.y : i == 2 ? a.z : a.w;
}

// Four numbers side by side, `count` of which are there; at once when `aligned`.
__device__ __forceinline__ float4 load4(const float* from, int64_t count, bool aligned) {
  if (aligned) return *reinterpret_cast<const float4*>(from);
  return {count > 0 ? from[0] : 0, count > 1 ? from[1] : 0, count > 2 ? from[2] : 0, count > 3 ? from[3] : 0};
}
__device__ __forceinline__ void store4(float* to, const float4& x, int64_t count, bool aligned) {
  if (aligned)
    *reinterpret_cast<float4*>(to) = x;
  else
    for (int i = 0; i < 4 && i < count; ++i) to[i] = part(x, i);
}
// The same of numbers that nobody wants again soon, which are the first to leave the caches.
__device__ __forceinline__ float4 load4_once(const float* from, int64_t count, bool aligned) {
  return aligned ? __ldcs(reinterpret_cast<const float4*>(from)) : load4(from, count, false);
}
__device__ __forceinline__ void store4_once(float* to, const float4& x, int64_t count, bool aligned) {
  if (aligned)
    __stcs(reinterpret_cast<float4*>(to), x);
  else
    store4(to, x, count, false);
}

}  // namespace weft::kernels::plain
