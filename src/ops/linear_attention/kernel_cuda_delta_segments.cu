// Delta rule: the states at the borders of a sequence's segments, from the affine maps that the segments are.
#include "ops/linear_attention/delta.cuh"

namespace weft::kernels::delta {
namespace {

constexpr int kThreads = 256, kColumns = 16, kDepth = 64;

// A map comes in tiles of kDepth of its columns (forward) or rows, two of them in shared memory or on their way.
template <int K, bool kBackward>
struct Shared {
  static constexpr int kStride = kBackward ? K : kDepth + 4;  // floats from row to row of a tile
  float tiles[2][(kBackward ? kDepth : K) * kStride];
  float state[K][kColumns];
};

// Starts to copy the tile whose first column or row is `first`.
template <int K, bool kBackward>
__device__ __forceinline__ void load_tile(float* tile, const float* map, int first) {
  constexpr int kWidth = kBackward ? K : kDepth, kRows = kBackward ? kDepth : K;
  const float* from = map + (kBackward ? first * K : first);
  for (int i = threadIdx.x; i < kRows * kWidth / 4; i += kThreads) {
    const int row = i / (kWidth / 4), column = i % (kWidth / 4) * 4;
    copy_async16(tile + row * Shared<K, kBackward>::kStride + column, from + row * K + column);
  }
}

// A block has 16 columns of a head's states [K, V]; a thread has one row and kEach columns. Forward: S is the state before
// a segment, S -> M S + E, from the first segment on, at first the first edge or what is in `outer`. Backward: its gradient
// behind the segment, S -> M' S + E, from the last segment on. Every E in `edges` becomes the S that its segment begins with.
template <int K, bool kBackward>
__global__ __launch_bounds__(kThreads) void join_kernel(const float* maps, float* edges, const float* outer,
                                                        int V, int segments, int first) {
  constexpr int kEach = kColumns * K / kThreads, kTiles = K / kDepth, kStride = Shared<K, kBackward>::kStride;
  extern __shared__ __align__(128) unsigned char shared[];
  auto& s = *reinterpret_cast<Shared<K, kBackward>*>(shared);
  const int k = threadIdx.x % K, mine = threadIdx.x / K * kEach, column = blockIdx.x * kColumns + mine;
  const int64_t head = blockIdx.y;
  const int steps = segments - first;
  const auto segment = [&](int step) {
    return head * segments + (kBackward ? segments - 1 - step : first + step);
  };
  const auto load = [&](int n) {
    if (n < (steps - 1) * kTiles)
      load_tile<K, kBackward>(s.tiles[n % 2], maps + segment(n / kTiles) * K * K, n % kTiles * kDepth);
    copy_async_commit();
  };
  load(0);
  const auto at = [](float* row, int i) { return reinterpret_cast<float4*>(row + i); };
  alignas(16) float x[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i)
    x[i] = first   ? edges[(head * segments * K + k) * V + column + i]
           : outer ? outer[(head * K + k) * V + column + i]
                   : 0.f;
  for (int step = 0; step < steps; ++step) {
    float* edge = edges + (segment(step) * K + k) * V + column;
    alignas(16) float next[kEach];
#pragma unroll
    for (int i = 0; i < kEach; i += 4) {
      *at(next, i) = *at(edge, i);
      *at(edge, i) = *at(&s.state[k][mine], i) = *at(x, i);
    }
    if (step == steps - 1) return;
    for (int tile = 0; tile < kTiles; ++tile) {
      const int n = step * kTiles + tile;
      load(n + 1);
      copy_async_wait<1>();
      __syncthreads();
      const float* map = s.tiles[n % 2] + (kBackward ? k : k * kStride);
#pragma unroll 4
      for (int j = 0; j < kDepth; j += 4) {
        float m[4];
        if constexpr (kBackward) {
#pragma unroll
          for (int i = 0; i < 4; ++i) m[i] = map[(j + i) * kStride];
        } else {
          *reinterpret_cast<float4*>(m) = *reinterpret_cast<const float4*>(map + j);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int c = 0; c < kEach; c += 4) {
            const float4 y = *reinterpret_cast<const float4*>(&s.state[tile * kDepth + j + i][mine + c]);
            next[c] += m[i] * y.x, next[c + 1] += m[i] * y.y, next[c + 2] += m[i] * y.z,
                next[c + 3] += m[i] * y.w;
          }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) x[i] = next[i];
  }
}

template <bool kBackward>
CudaStatus join(const CudaLinearAttention& p, const Work& work, float* edges, const float* outer, int first,
                void* stream) {
  const dim3 grid(static_cast<unsigned>(p.value_width / kColumns), static_cast<unsigned>(p.batch * p.heads));
  const auto run = [&](auto width) -> CudaStatus {
    const auto kernel = join_kernel<width(), kBackward>;
    constexpr size_t kBytes = sizeof(Shared<width(), kBackward>);
    if (const auto error = allow_shared(kernel, kBytes)) return status_of(error);
    kernel<<<grid, kThreads, kBytes, static_cast<cudaStream_t>(stream)>>>(
        work.maps, edges, outer, static_cast<int>(p.value_width), work.segments, first);
    return last_status();
  };
  if (p.key_width == 64) return run(std::integral_constant<int, 64>{});
  if (p.key_width == 128) return run(std::integral_constant<int, 128>{});
  return run(std::integral_constant<int, 256>{});
}

}  // namespace

CudaStatus join_segments(const CudaLinearAttention& p, const Work& work, int first, void* stream) {
  return join<false>(p, work, work.edges, p.initial_state, first, stream);
}
CudaStatus join_segments_backward(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                                  const Work& work, void* stream) {
  return join<true>(p, work, work.dedges, g.dstate, 0, stream);
}

}  // namespace weft::kernels::delta
