// Vectors of neighbouring elements: one access of up to 16 bytes, values in fp32.
#pragma once

#include <type_traits>

#include "ops/cuda/device.cuh"

namespace weft::kernels {

// Pairs of 16-bit numbers stay in the registers that a load fills until they are widened: taken apart earlier, a thread
// would wait for each load at once.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  static constexpr bool kPairs = sizeof(T) == 2 && kWidth % 2 == 0;
  using Part = std::conditional_t<kPairs, uint32_t, T>;
  static constexpr int kParts = kPairs ? kWidth / 2 : kWidth;
  Part at[kParts];
};

template <class T, int kWidth>
__device__ __forceinline__ Pack<T, kWidth> no_pack() {
  Pack<T, kWidth> out;
#pragma unroll
  for (auto& part : out.at) part = typename Pack<T, kWidth>::Part(0);
  return out;
}
template <int kWidth, class T>
__device__ __forceinline__ Pack<T, kWidth> load_pack(const T* from) {
  using Packed = Pack<T, kWidth>;
  if constexpr (sizeof(Packed) == 16) {
    const uint4 x = *reinterpret_cast<const uint4*>(from);
    return *reinterpret_cast<const Packed*>(&x);
  } else if constexpr (sizeof(Packed) == 8) {
    const uint2 x = *reinterpret_cast<const uint2*>(from);
    return *reinterpret_cast<const Packed*>(&x);
  } else {
    return *reinterpret_cast<const Packed*>(from);
  }
}
template <class T, int kWidth>
__device__ __forceinline__ void store_pack(T* to, const float (&x)[kWidth]) {
  Pack<T, kWidth> out;
#pragma unroll
  for (int i = 0; i < Pack<T, kWidth>::kParts; ++i) {
    if constexpr (Pack<T, kWidth>::kPairs)
      out.at[i] = pack<T>(x[2 * i], x[2 * i + 1]);
    else
      out.at[i] = from_float<T>(x[i]);
  }
  if constexpr (sizeof(out) == 16)
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&out);
  else if constexpr (sizeof(out) == 8)
    *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(&out);
  else
    *reinterpret_cast<Pack<T, kWidth>*>(to) = out;
}
template <class T, int kWidth>
__device__ __forceinline__ void widen(float (&x)[kWidth], const Pack<T, kWidth>& from) {
#pragma unroll
  for (int i = 0; i < Pack<T, kWidth>::kParts; ++i) {
    if constexpr (Pack<T, kWidth>::kPairs) {
      const float2 pair = unpack<T>(from.at[i]);
      x[2 * i] = pair.x, x[2 * i + 1] = pair.y;
    } else {
      x[i] = to_float(from.at[i]);
    }
  }
}
template <class T, int kWidth>
__device__ __forceinline__ void load_floats(float (&x)[kWidth], const T* from) {
  widen(x, load_pack<kWidth>(from));
}

// One element of a tensor whose type is known at run time, for the small ones.
__device__ __forceinline__ float element(const void* x, CudaType type, int64_t i) {
  if (type == CudaType::bf16) return to_float(static_cast<const bf16*>(x)[i]);
  if (type == CudaType::fp16) return to_float(static_cast<const fp16*>(x)[i]);
  return static_cast<const float*>(x)[i];
}
// The same in two steps, so that a thread need not wait for what it has only just asked for: the bits, then their value.
// No bits are zero in every type.
__device__ __forceinline__ uint32_t element_bits(const void* x, CudaType type, int64_t i) {
  return type == CudaType::fp32 ? static_cast<const uint32_t*>(x)[i] : static_cast<const uint16_t*>(x)[i];
}
__device__ __forceinline__ float from_bits(uint32_t bits, CudaType type) {
  if (type == CudaType::fp32) return __uint_as_float(bits);
  const uint16_t half = static_cast<uint16_t>(bits);
  return type == CudaType::bf16 ? __uint_as_float(bits << 16)
                                : to_float(*reinterpret_cast<const fp16*>(&half));
}
__device__ __forceinline__ void set_element(void* x, CudaType type, int64_t i, float value) {
  if (type == CudaType::bf16)
    static_cast<bf16*>(x)[i] = from_float<bf16>(value);
  else if (type == CudaType::fp16)
    static_cast<fp16*>(x)[i] = from_float<fp16>(value);
  else
    static_cast<float*>(x)[i] = value;
}

// kWidth neighbours of such a tensor, aligned like a pack.
template <int kWidth>
__device__ __forceinline__ void load_elements(float (&x)[kWidth], const void* from, CudaType type,
                                              int64_t i) {
  if (type == CudaType::bf16)
    load_floats(x, static_cast<const bf16*>(from) + i);
  else if (type == CudaType::fp16)
    load_floats(x, static_cast<const fp16*>(from) + i);
  else if constexpr (kWidth <= 4)
    load_floats(x, static_cast<const float*>(from) + i);
  else
#pragma unroll
    for (int j = 0; j < kWidth; ++j) x[j] = static_cast<const float*>(from)[i + j];
}

// Whether rows that begin `stride` elements apart can be read in packs of `width` elements.
inline bool packs(const void* data, int64_t stride, int width, int64_t element_bytes) {
  return stride % width == 0 &&
         reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(width * element_bytes) == 0;
}

// 1 / (1 + e^-x).
__device__ __forceinline__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + fast_exp2(-kLog2e * x)); }

}  // namespace weft::kernels
