// What a thread of the scan holds of one token: real numbers of a few channels, a complex number, or a 2 x 2 matrix with
// a pair of states. Coefficients compose as (later) * (earlier).
// kTokens: how many a thread takes at once.
#pragma once

#include "ops/cuda/vector.cuh"
#include "ops/scan/kernel_cuda.h"

namespace weft::kernels {

// kVector channels of types known at compile time.
template <class A, class H, int kVector, int kTokensOfThread = 8>
struct RealPacks {
  static constexpr int kChannels = kVector, kCoefficients = kVector, kStates = kVector,
                       kTokens = kTokensOfThread;
  using RowA = Pack<A, kVector>;
  using RowH = Pack<H, kVector>;

  __device__ static RowA load_a(const CudaRows& rows, int64_t, int64_t at) {
    return load_pack<kVector>(static_cast<const A*>(rows.data) + at);
  }
  __device__ static RowH load_h(const void* data, CudaType, int64_t, int64_t at) {
    return load_pack<kVector>(static_cast<const H*>(data) + at);
  }
  __device__ static void store_h(void* to, CudaType, int64_t, int64_t at, const float (&x)[kVector]) {
    store_pack(static_cast<H*>(to) + at, x);
  }
  __device__ static void store_a(void* to, CudaType, int64_t, int64_t at, const float (&x)[kVector]) {
    store_pack(static_cast<A*>(to) + at, x);
  }
  __device__ static void multiply(float (&out)[kVector], const float (&a)[kVector],
                                  const float (&h)[kVector]) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) out[i] = a[i] * h[i];
  }
  __device__ static void multiply_adjoint(float (&out)[kVector], const float (&a)[kVector],
                                          const float (&g)[kVector]) {
    multiply(out, a, g);
  }
  __device__ static void compose(float (&out)[kVector], const float (&later)[kVector],
                                 const float (&earlier)[kVector]) {
    multiply(out, later, earlier);
  }
  __device__ static void outer(float (&da)[kVector], const float (&g)[kVector], const float (&h)[kVector]) {
    multiply(da, g, h);
  }
  __device__ static void identity(float (&a)[kVector]) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) a[i] = 1.0f;
  }
};

// One channel of any types, for odd numbers of channels and memory that is not aligned.
struct RealAny : RealPacks<float, float, 1> {
  __device__ static RowA load_a(const CudaRows& rows, int64_t, int64_t at) {
    return {element(rows.data, rows.type, at)};
  }
  __device__ static RowH load_h(const void* data, CudaType type, int64_t, int64_t at) {
    return {element(data, type, at)};
  }
  __device__ static void store_h(void* to, CudaType type, int64_t, int64_t at, const float (&x)[1]) {
    set_element(to, type, at, x[0]);
  }
  __device__ static void store_a(void* to, CudaType type, int64_t, int64_t at, const float (&x)[1]) {
    set_element(to, type, at, x[0]);
  }
};

struct ComplexNumber {
  static constexpr int kChannels = 1, kCoefficients = 2, kStates = 2, kTokens = 4;
  using RowA = Pack<float, 2>;
  using RowH = Pack<float, 2>;

  __device__ static RowA load_a(const CudaRows& rows, int64_t, int64_t at) {
    return load_pack<2>(static_cast<const float*>(rows.data) + 2 * at);
  }
  __device__ static RowH load_h(const void* data, CudaType, int64_t, int64_t at) {
    return load_pack<2>(static_cast<const float*>(data) + 2 * at);
  }
  __device__ static void store_h(void* to, CudaType, int64_t, int64_t at, const float (&x)[2]) {
    store_pack(static_cast<float*>(to) + 2 * at, x);
  }
  __device__ static void store_a(void* to, CudaType, int64_t, int64_t at, const float (&x)[2]) {
    store_pack(static_cast<float*>(to) + 2 * at, x);
  }
  __device__ static void multiply(float (&out)[2], const float (&a)[2], const float (&h)[2]) {
    const float re = a[0] * h[0] - a[1] * h[1], im = a[0] * h[1] + a[1] * h[0];
    out[0] = re, out[1] = im;
  }
  __device__ static void multiply_adjoint(float (&out)[2], const float (&a)[2], const float (&g)[2]) {
    const float re = a[0] * g[0] + a[1] * g[1], im = a[0] * g[1] - a[1] * g[0];
    out[0] = re, out[1] = im;
  }
  __device__ static void compose(float (&out)[2], const float (&later)[2], const float (&earlier)[2]) {
    multiply(out, later, earlier);
  }
  __device__ static void outer(float (&da)[2], const float (&g)[2], const float (&h)[2]) {
    multiply_adjoint(da, h, g);
  }
  __device__ static void identity(float (&a)[2]) { a[0] = 1.0f, a[1] = 0.0f; }
};

struct MatrixPair {
  static constexpr int kChannels = 1, kCoefficients = 4, kStates = 2, kTokens = 4;
  using RowA = Pack<float, 4>;
  using RowH = Pack<float, 2>;

  __device__ static RowA load_a(const CudaRows& rows, int64_t channels, int64_t at) {
    const float* const from = static_cast<const float*>(rows.data) + at;
    return {from[0], from[channels], from[2 * channels], from[3 * channels]};
  }
  __device__ static RowH load_h(const void* data, CudaType, int64_t channels, int64_t at) {
    const float* const from = static_cast<const float*>(data) + at;
    return {from[0], from[channels]};
  }
  __device__ static void store_h(void* to, CudaType, int64_t channels, int64_t at, const float (&x)[2]) {
    static_cast<float*>(to)[at] = x[0], static_cast<float*>(to)[at + channels] = x[1];
  }
  __device__ static void store_a(void* to, CudaType, int64_t channels, int64_t at, const float (&x)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) static_cast<float*>(to)[at + i * channels] = x[i];
  }
  __device__ static void multiply(float (&out)[2], const float (&a)[4], const float (&h)[2]) {
    const float first = a[0] * h[0] + a[1] * h[1], second = a[2] * h[0] + a[3] * h[1];
    out[0] = first, out[1] = second;
  }
  __device__ static void multiply_adjoint(float (&out)[2], const float (&a)[4], const float (&g)[2]) {
    const float first = a[0] * g[0] + a[2] * g[1], second = a[1] * g[0] + a[3] * g[1];
    out[0] = first, out[1] = second;
  }
  __device__ static void compose(float (&out)[4], const float (&later)[4], const float (&earlier)[4]) {
    float product[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      product[i] = later[i & 2] * earlier[i & 1] + later[(i & 2) + 1] * earlier[2 + (i & 1)];
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = product[i];
  }
  __device__ static void outer(float (&da)[4], const float (&g)[2], const float (&h)[2]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) da[i] = g[i / 2] * h[i % 2];
  }
  __device__ static void identity(float (&a)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = i == 0 || i == 3 ? 1.0f : 0.0f;
  }
};

}  // namespace weft::kernels
