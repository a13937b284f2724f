// Products of few rows with weights, bound by reading these: a warp has one row of a weight (of a SwiGLU one of both), each
// lane 16 bytes of it at a time. Weights are asked for before the kernel ahead has ended.
#include "ops/linear/kernel_cuda.h"

#include "ops/cuda/early.cuh"
#include "ops/cuda/vector.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 128, kWarps = kThreads / 32;
constexpr int kPack = 8;  // elements of 16 bytes

// kOutputs rows of weights, `weights`, times kRows rows of x.
template <class T, int kRows, int kOutputs>
struct Product {
  using Row = Pack<T, kPack>;
  static constexpr int kAhead =
      kRows <= 2 ? 8 : 4;  // packs of a row of weights that a lane waits for together
  float sum[kOutputs][kRows] = {};

  __device__ __forceinline__ void add(const T* x, int width, const T* const (&weights)[kOutputs]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    for (int begin = lane * kPack; begin < width; begin += kAhead * 32 * kPack) {
      Row w[kOutputs][kAhead];
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
          const int at = begin + i * 32 * kPack;
          w[o][i] = at < width ? load_pack<kPack>(weights[o] + at) : no_pack<T, kPack>();
        }
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int at = begin + i * 32 * kPack;
        if (at >= width) break;
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float row[kPack];
          load_floats(row, x + r * width + at);
#pragma unroll
          for (int o = 0; o < kOutputs; ++o) {
            float weight[kPack];
            widen(weight, w[o][i]);
#pragma unroll
            for (int j = 0; j < kPack; ++j) sum[o][r] = fmaf(row[j], weight[j], sum[o][r]);
          }
        }
      }
    }
#pragma unroll
    for (int o = 0; o < kOutputs; ++o)
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[o][r] = warp_sum(sum[o][r]);
  }
};

template <class T, int kRows, bool kSwiglu>
__global__ void __launch_bounds__(kThreads) product_kernel(const __grid_constant__ CudaLinear p) {
  constexpr int kOutputs = kSwiglu ? 2 : 1;
  int64_t output = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  int index = 0;
  if constexpr (!kSwiglu)
    while (index + 1 < p.maps && output >= p.map[index].count) output -= p.map[index++].count;
  const CudaLinearMap& map = p.map[index];
  const bool there = output < map.count;
  const int width = static_cast<int>(p.width), lane = static_cast<int>(threadIdx.x) % 32;
  const T* weights[kOutputs];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o)
    weights[o] = static_cast<const T*>(p.map[index + o].weight) + output * width;
  constexpr int kLine = 64;  // elements of 128 bytes
  if (there)
    for (int at = lane * kLine; at < width; at += 32 * kLine)
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) prefetch(weights[o] + at);
  let_next_start();
  wait_for_last();
  if (!there) return;
  Product<T, kRows, kOutputs> product;
  product.add(static_cast<const T*>(p.x), width, weights);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (lane != r) continue;
    float y = product.sum[0][r];
    if (map.bias) y += to_float(static_cast<const T*>(map.bias)[output]);
    if constexpr (kSwiglu) y *= sigmoid(y) * product.sum[1][r];
    static_cast<T*>(map.y)[r * map.count + output] = from_float<T>(y);
  }
}

bool takes(const CudaLinear& p) {
  bool fits = p.type != CudaType::fp32 && p.rows > 0 && p.rows <= kCudaLinearRows && p.maps > 0 &&
              p.maps <= kCudaLinearMaps && p.width > 0 && packs(p.x, p.width, kPack, 2);
  for (int i = 0; i < p.maps; ++i) fits = fits && p.map[i].count > 0 && packs(p.map[i].weight, 0, kPack, 2);
  return fits;
}

// kRows: those of x, or fewer.
template <class T, int kRows = 1>
CudaStatus launch(const CudaLinear& p, void* stream) {
  if constexpr (kRows < kCudaLinearRows)
    if (p.rows > kRows) return launch<T, kRows + 1>(p, stream);
  int64_t outputs = 0;
  for (int i = 0; i < (p.swiglu ? 1 : p.maps); ++i) outputs += p.map[i].count;
  const auto blocks = static_cast<unsigned>((outputs + kWarps - 1) / kWarps);
  const auto kernel = p.swiglu ? product_kernel<T, kRows, true> : product_kernel<T, kRows, false>;
  return launch_early(kernel, blocks, kThreads, 0, stream, p.capability, 1, p);
}

CudaStatus products(const CudaLinear& p, void* stream) {
  return p.type == CudaType::bf16 ? launch<bf16>(p, stream) : launch<fp16>(p, stream);
}

constexpr LinearCuda kTable = {takes, products};

}  // namespace

const LinearCuda& linear_cuda() { return kTable; }

}  // namespace weft::kernels
