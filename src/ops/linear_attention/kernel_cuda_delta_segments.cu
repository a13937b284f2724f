// Delta rule: the states at the borders of a sequence's segments, from the affine maps that the segments are.
#include "ops/linear_attention/delta.cuh"

namespace weft::kernels::delta {
namespace {

constexpr int kThreads = 256, kColumns = 16;

// A block has 16 columns of a head's states [K, V]; a thread has one row and kEach columns. Forward: S is the state before
// a segment, S -> M S + E. Backward: its gradient behind the segment, S -> M' S + E, from the last segment on. Every E in
// `edges` becomes the S that its segment begins with.
template <int K, bool kBackward>
__global__ __launch_bounds__(kThreads) void join_kernel(const float* maps, float* edges, const float* outer,
                                                        int V, int segments) {
  constexpr int kEach = kColumns * K / kThreads;
  __shared__ float state[K][kColumns];
  const int k = threadIdx.x % K, mine = threadIdx.x / K * kEach, column = blockIdx.x * kColumns + mine;
  const int64_t head = blockIdx.y;
  float x[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) x[i] = outer ? outer[(head * K + k) * V + column + i] : 0.f;
  for (int step = 0; step < segments; ++step) {
    const int64_t at = head * segments + (kBackward ? segments - 1 - step : step);
    const float* map = maps + at * K * K;
    float* edge = edges + (at * K + k) * V + column;
    float next[kEach];
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      next[i] = edge[i];
      edge[i] = state[k][mine + i] = x[i];
    }
    if (step == segments - 1) return;
    __syncthreads();
#pragma unroll 8
    for (int j = 0; j < K; ++j) {
      const float m = kBackward ? map[j * K + k] : map[k * K + j];
#pragma unroll
      for (int i = 0; i < kEach; ++i) next[i] += m * state[j][mine + i];
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) x[i] = next[i];
    __syncthreads();
  }
}

template <bool kBackward>
CudaStatus join(const CudaLinearAttention& p, const Work& work, float* edges, const float* outer,
                void* stream) {
  const dim3 grid(static_cast<unsigned>(p.value_width / kColumns), static_cast<unsigned>(p.batch * p.heads));
  const auto run = [&](auto width) {
    const auto kernel = join_kernel<width(), kBackward>;
    kernel<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        work.maps, edges, outer, static_cast<int>(p.value_width), work.segments);
    return last_status();
  };
  if (p.key_width == 64) return run(std::integral_constant<int, 64>{});
  if (p.key_width == 128) return run(std::integral_constant<int, 128>{});
  return run(std::integral_constant<int, 256>{});
}

}  // namespace

CudaStatus join_segments(const CudaLinearAttention& p, const Work& work, void* stream) {
  return join<false>(p, work, work.edges, p.initial_state, stream);
}
CudaStatus join_segments_backward(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                                  const Work& work, void* stream) {
  return join<true>(p, work, work.dedges, g.dstate, stream);
}

}  // namespace weft::kernels::delta
