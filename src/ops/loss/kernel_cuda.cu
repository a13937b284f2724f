// Cross-entropy of rows of logits. A block has a row; every thread keeps the largest logit that it has seen and the sum of
// exponentials relative to it, so that a row is read once. Products with the scale
// are rounded before anything else happens to them, so that the share of an only logit is 1.
#include "ops/loss/kernel_cuda.h"

#include "ops/cuda/vector.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 512, kWarps = kThreads / 32;

// The sum of 2^x as sum * 2^top.
struct PowerSum {
  float top = -INFINITY, sum = 0.0f;

  __device__ __forceinline__ void join(float other_top, float other_sum) {
    const float next = fmaxf(top, other_top);
    if (next == -INFINITY) return;
    sum = sum * fast_exp2(top - next) + other_sum * fast_exp2(other_top - next);
    top = next;
  }
};

// Over the threads of a block, in a fixed order.
__device__ PowerSum block_sum(PowerSum x) {
  __shared__ float tops[kWarps], sums[kWarps];
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const float top = __shfl_xor_sync(0xffffffff, x.top, step),
                sum = __shfl_xor_sync(0xffffffff, x.sum, step);
    x.join(top, sum);
  }
  if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = x.top, sums[threadIdx.x / 32] = x.sum;
  __syncthreads();
  PowerSum all;
  for (int w = 0; w < kWarps; ++w) all.join(tops[w], sums[w]);
  return all;
}

// Calls body(values, first column, count) on packs and, behind the last, on single elements.
template <class T, int kVector, class Body>
__device__ __forceinline__ void for_row(const T* row, int64_t width, const Body& body) {
  int64_t at = int64_t{threadIdx.x} * kVector;
#pragma unroll 2
  for (; at + kVector <= width; at += int64_t{kThreads} * kVector) {
    float x[kVector];
    load_floats(x, row + at);
    body.template operator()<kVector>(x, at);
  }
  if (at < width)
    for (int64_t i = at; i < width; ++i) {
      float x[1] = {to_float(row[i])};
      body.template operator()<1>(x, i);
    }
}

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads) loss_kernel(const CudaLoss p) {
  const int64_t row = blockIdx.x;
  const T* const logits = static_cast<const T*>(p.logits) + row * p.row;
  const float scale = p.scale * kLog2e;
  PowerSum mine;
  for_row<T, kVector>(logits, p.vocabulary, [&]<int kCount>(float(&x)[kCount], int64_t) {
    float top = -INFINITY, sum = 0.0f;
#pragma unroll
    for (float& value : x) value = __fmul_rn(value, scale), top = fmaxf(top, value);
    if (top == -INFINITY) return;
#pragma unroll
    for (const float value : x) sum += fast_exp2(value - top);
    mine.join(top, sum);
  });
  const PowerSum all = block_sum(mine);
  if (threadIdx.x) return;
  const float lse = all.top + log2f(all.sum);
  const int64_t target = p.targets[row];
  p.lse[row] = lse;
  if (target == p.ignore)
    p.losses[row] = 0.0f;
  else if (target < 0 || target >= p.vocabulary)
    p.losses[row] = NAN;
  else
    p.losses[row] = (lse - __fmul_rn(to_float(logits[target]), scale)) * (1.0f / kLog2e);
}

template <class T, int kVector>
__global__ void __launch_bounds__(kThreads) gradient_kernel(const CudaLoss p) {
  const int64_t row = blockIdx.x, target = p.targets[row];
  T* const logits = static_cast<T*>(p.logits) + row * p.row;
  const float scale = p.scale * kLog2e, lse = p.lse[row];
  const float upstream = target == p.ignore ? 0.0f : p.upstream[row] * p.scale;
  for_row<T, kVector>(logits, p.vocabulary, [&]<int kCount>(float(&x)[kCount], int64_t at) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float share = fast_exp2(__fmul_rn(x[i], scale) - lse);
      x[i] = upstream == 0.0f ? 0.0f : upstream * (at + i == target ? share - 1.0f : share);
    }
    store_pack(logits + at, x);
  });
}

// Calls body.run<T, vector>().
template <class Body>
CudaStatus with_vector(const CudaLoss& p, const Body& body) {
  if (p.rows == 0) return nullptr;
  return with_type(p.type, [&]<class T>(T) {
    constexpr int kWide = 16 / sizeof(T);
    if (packs(p.logits, p.row, kWide, sizeof(T)))
      body.template operator()<T, kWide>();
    else
      body.template operator()<T, 1>();
    return last_status();
  });
}

CudaStatus losses(const CudaLoss& p, void* stream) {
  return with_vector(p, [&]<class T, int kVector>() {
    loss_kernel<T, kVector>
        <<<static_cast<unsigned>(p.rows), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  });
}

CudaStatus gradient(const CudaLoss& p, void* stream) {
  return with_vector(p, [&]<class T, int kVector>() {
    gradient_kernel<T, kVector>
        <<<static_cast<unsigned>(p.rows), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  });
}

constexpr LossCuda kTable = {losses, gradient};

}  // namespace

const LossCuda& loss_cuda() { return kTable; }

}  // namespace weft::kernels
