// silu(gate) x and its gradients: one pass, 16 bytes of each tensor a thread.
#include "ops/activation/kernel_cuda.h"

#include <algorithm>
#include <initializer_list>

#include "ops/cuda/vector.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256;

// Calls body(offset in gate, in x, in what is contiguous) of the thread's elements.
template <int kVector, class Body>
__device__ __forceinline__ void for_elements(const CudaSiluMul& p, const Body& body) {
  const int64_t packs = p.width / kVector, index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= p.rows * packs) return;
  const int64_t row = p.rows == 1 ? 0 : index / packs, column = (index - row * packs) * kVector;
  body(row * p.gate_row + column, row * p.x_row + column, row * p.width + column);
}

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads) forward_kernel(const CudaSiluMul p) {
  for_elements<kVector>(p, [&](int64_t gate_at, int64_t x_at, int64_t at) {
    float gate[kVector], x[kVector];
    load_floats(gate, static_cast<const T*>(p.gate) + gate_at);
    load_floats(x, static_cast<const T*>(p.x) + x_at);
#pragma unroll
    for (int i = 0; i < kVector; ++i) x[i] *= gate[i] * sigmoid(gate[i]);
    store_pack(static_cast<T*>(p.y) + at, x);
  });
}

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads) backward_kernel(const CudaSiluMul p) {
  for_elements<kVector>(p, [&](int64_t gate_at, int64_t x_at, int64_t at) {
    float gate[kVector], x[kVector], dy[kVector];
    load_floats(gate, static_cast<const T*>(p.gate) + gate_at);
    load_floats(x, static_cast<const T*>(p.x) + x_at);
    load_floats(dy, static_cast<const T*>(p.dy) + at);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const float open = sigmoid(gate[i]), slope = open * fmaf(gate[i], 1.0f - open, 1.0f);
      const float dgate = dy[i] * x[i] * slope;
      x[i] = dy[i] * gate[i] * open;
      gate[i] = dgate;
    }
    store_pack(static_cast<T*>(p.dgate) + at, gate);
    store_pack(static_cast<T*>(p.dx) + at, x);
  });
}

bool aligned(const CudaSiluMul& p, std::initializer_list<const void*> dense, int width, int64_t element) {
  bool all = p.width % width == 0 && packs(p.gate, p.gate_row, width, element) &&
             packs(p.x, p.x_row, width, element);
  for (const void* data : dense) all = all && packs(data, 0, width, element);
  return all;
}

// Calls body.run<T, vector>(blocks).
template <class Body>
CudaStatus with_vector(const CudaSiluMul& p, std::initializer_list<const void*> dense, const Body& body) {
  if (p.rows * p.width == 0) return nullptr;
  return with_type(p.type, [&]<class T>(T) {
    constexpr int kWide = 16 / sizeof(T);
    const bool wide = aligned(p, dense, kWide, sizeof(T));
    const int64_t threads = p.rows * p.width / (wide ? kWide : 1);
    const auto blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
    if (wide)
      body.template operator()<T, kWide>(blocks);
    else
      body.template operator()<T, 1>(blocks);
    return last_status();
  });
}

CudaStatus forward(const CudaSiluMul& p, void* stream) {
  return with_vector(p, {p.y}, [&]<class T, int kVector>(unsigned blocks) {
    forward_kernel<T, kVector><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  });
}

CudaStatus backward(const CudaSiluMul& p, void* stream) {
  return with_vector(p, {p.dy, p.dgate, p.dx}, [&]<class T, int kVector>(unsigned blocks) {
    backward_kernel<T, kVector><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  });
}

constexpr ActivationCuda kTable = {forward, backward};

}  // namespace

const ActivationCuda& activation_cuda() { return kTable; }

}  // namespace weft::kernels
