// Rotary embedding: a thread has one or two pairs of channels of a token and turns them in every head, so that angles are
// made once. They are reduced to less than half a turn in fp64.
#include "ops/rope/kernel_cuda.h"

#include <algorithm>

#include "ops/cuda/vector.cuh"
#include "ops/rope/angle.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256;

// kVector pairs of a thread: channels i and i + pairs, or, interleaved, 2 i and 2 i + 1.
template <class T, bool kInterleaved, int kVector>
__global__ void __launch_bounds__(kCudaRopePairs) turn_kernel(const CudaRope p) {
  const int64_t token = int64_t{blockIdx.x} * blockDim.y + threadIdx.y;
  if (token >= p.batch * p.tokens) return;
  const int64_t first = int64_t{threadIdx.x} * kVector;
  const double position = static_cast<double>(p.positions[token]);
  float cosine[kVector], sine[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    const double frequency = p.frequencies ? p.frequencies[token * p.frequency_stride + first + i]
                                           : rope_frequency(p.log2_theta, first + i, p.pairs);
    rope_angle(position, frequency, cosine[i], sine[i]);
    cosine[i] *= static_cast<float>(p.magnitude);
    sine[i] *= static_cast<float>(p.backwards ? -p.magnitude : p.magnitude);
  }
  const T* const x = static_cast<const T*>(p.x) + token / p.tokens * p.x_batch + token % p.tokens * p.x_token;
  T* const y = static_cast<T*>(p.y) + token * p.heads * p.width;
#pragma unroll 4
  for (int64_t head = 0; head < p.heads; ++head) {
    const T* const from = x + head * p.x_head;
    T* const to = y + head * p.width;
    if constexpr (kInterleaved) {
      static_assert(kVector == 1);
      const float a = to_float(from[2 * first]), b = to_float(from[2 * first + 1]);
      to[2 * first] = from_float<T>(a * cosine[0] - b * sine[0]);
      to[2 * first + 1] = from_float<T>(b * cosine[0] + a * sine[0]);
    } else {
      float a[kVector], b[kVector];
      load_floats(a, from + first);
      load_floats(b, from + p.pairs + first);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const float turned = a[i] * cosine[i] - b[i] * sine[i];
        b[i] = b[i] * cosine[i] + a[i] * sine[i];
        a[i] = turned;
      }
      store_pack(to + first, a);
      store_pack(to + p.pairs + first, b);
    }
    for (int64_t c = 2 * p.pairs + threadIdx.x; c < p.width; c += blockDim.x) to[c] = from[c];
  }
}

CudaStatus turn(const CudaRope& p, void* stream) {
  const int64_t rows = p.batch * p.tokens;
  if (rows * p.heads * p.width == 0) return nullptr;
  return with_type(p.type, [&]<class T>(T) {
    const auto fits = [&](int width) {
      return p.width % width == 0 && packs(p.x, p.x_batch, width, sizeof(T)) && p.x_token % width == 0 &&
             p.x_head % width == 0 && packs(p.y, 0, width, sizeof(T));
    };
    const auto run = [&]<bool kInterleaved, int kVector>() {
      const auto lanes = static_cast<unsigned>(p.pairs / kVector), tokens = std::max(1u, kThreads / lanes);
      const auto grid = static_cast<unsigned>((rows + tokens - 1) / tokens);
      turn_kernel<T, kInterleaved, kVector>
          <<<grid, dim3(lanes, tokens), 0, static_cast<cudaStream_t>(stream)>>>(p);
    };
    if (p.interleaved) {
      run.template operator()<true, 1>();
    } else if (p.pairs % 2 == 0 && fits(2)) {
      run.template operator()<false, 2>();
    } else {
      run.template operator()<false, 1>();
    }
    return last_status();
  });
}

constexpr RopeCuda kTable = {turn};

}  // namespace

const RopeCuda& rope_cuda() { return kTable; }

}  // namespace weft::kernels
