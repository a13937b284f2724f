// Delta rule: what the chunks can work out before the state is known.
#include "ops/linear_attention/delta_prepare.cuh"

namespace weft::kernels::delta {
namespace {

constexpr int kThreads = kPrepareThreads;

template <class T, int K>
struct Shared {
  T q[kSpreadRows * K], k[kSpreadRows * K];
  float system[kChunk * kTriangularStride];
  Tokens tokens;
};

// 16 rows of X K' from `16 strip` on.
template <class T, int K>
__device__ __forceinline__ void multiply_keys(float (&c)[8][4], int strip, const T* x, const T* k) {
#pragma unroll 4
  for (int d = 0; d < K; d += 16) {
    uint32_t a[4], b[4];
    left<kSpreadRows>(a, x, 16 * strip, d);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      if (j <= strip) {
        right_transposed<kSpreadRows>(b, k, 16 * j, d);
        multiply_add_pair<T>(c[2 * j], c[2 * j + 1], a, b);
      }
  }
}

// A block has one chunk of a head.
template <class T, int K>
__global__ __launch_bounds__(kThreads) void prepare_kernel(const __grid_constant__ CudaLinearAttention p,
                                                           const Work work) {
  extern __shared__ __align__(128) unsigned char shared[];
  auto& s = *reinterpret_cast<Shared<T, K>*>(shared);
  const int h = blockIdx.y, b = blockIdx.z;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
  const int64_t chunk = work.chunk(p, b, h, blockIdx.x);
  const int valid = valid_tokens(p, first);

  copy_rows(s.k, row_at<T>(p.k, b, first, key_head(p, h)), p.k.token, valid, K);
  copy_rows(s.q, row_at<T>(p.q, b, first, key_head(p, h)), p.q.token, valid, K);
  copy_async_commit();
  if (threadIdx.x < 32) load_tokens<T>(s.tokens, p, b, h, first);
  copy_async_wait<0>();
  __syncthreads();
  store_facts(*tile_at<Facts<K>>(work.facts, chunk, 1), p, s.tokens);
  // Four warps have the system, four P.
  const int strip = threadIdx.x / 32 % 4;
  const bool reads = threadIdx.x >= kThreads / 2;
  float c[8][4] = {};
  multiply_keys<T, K>(c, strip, reads ? s.q : s.k, s.k);
  if (reads)
    store_reads(tile_at<T>(work.reads, chunk, kPairs), strip, c, p.scale, s.tokens);
  else
    store_system(s.system, strip, c, s.tokens);
  invert_unit_lower<T>(s.system);
  __syncthreads();
  store_solve(tile_at<T>(work.solve, chunk, 2 * kPairs), s.system);
}

}  // namespace

CudaStatus prepare(const CudaLinearAttention& p, const Work& work, void* stream) {
  return with_type_and_width(p, [&](auto type, auto width) -> CudaStatus {
    using Layout = Shared<decltype(type), width()>;
    const auto kernel = prepare_kernel<decltype(type), width()>;
    constexpr size_t kBytes = sizeof(Layout);
    if (const auto error = allow_shared(kernel, kBytes)) return status_of(error);
    const dim3 grid(work.chunks, static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch));
    kernel<<<grid, kThreads, kBytes, static_cast<cudaStream_t>(stream)>>>(p, work);
    return last_status();
  });
}

}  // namespace weft::kernels::delta
