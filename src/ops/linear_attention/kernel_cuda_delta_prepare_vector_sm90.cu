// Delta rule with a vector decay, on Hopper: what the chunks can work out before the state is known, where the forward is not
// one kernel.
#include "ops/linear_attention/delta_prepare_vector_sm90.cuh"

namespace weft::kernels::delta {
namespace {

template <int K>
struct PrepareShared {
  struct Rows {
    bf16 keys[kSpreadRows * K], queries[kSpreadRows * K], columns[kSpreadRows * K];
  };
  Rows rows;
  Facts<K> facts;
  float before[K];
  float system[kChunk * kTriangularStride];
  float totals[kBlocks][K];
};

// A block has one chunk of a head.
template <int K, class Number>
struct Prepare : ChunkPairs<K, PrepareShared<K>, Number> {
  using T = bf16;
  using Base = ChunkPairs<K, PrepareShared<K>, Number>;
  using Base::p, Base::work, Base::s, Base::h, Base::b, Base::kh, Base::block;
  static constexpr int kThreads = 128;

  // A tile with its decay from the chunk's start or to its end, to device memory.
  __device__ __forceinline__ void store_rows(T* to, const T* from, const float* decay, bool gentle) const {
#pragma unroll 4
    for (int i = threadIdx.x; i < kChunk * K / 8; i += kThreads) {
      const T* at = piece<kSpreadRows>(from, i % kChunk, i / kChunk);
      uint4 x = *reinterpret_cast<const uint4*>(at);
      if (gentle) {
        float y[8], by[8];
        load_numbers(y, at), load_floats(by, decay + i / kChunk * 8);
        multiply_floats(y, y, by);
        x = make_uint4(pack<T>(y[0], y[1]), pack<T>(y[2], y[3]), pack<T>(y[4], y[5]), pack<T>(y[6], y[7]));
      }
      reinterpret_cast<uint4*>(to)[i] = x;
    }
  }
  __device__ __forceinline__ void store_facts(int64_t chunk, bool gentle) const {
    Facts<K>& facts = s.facts;
    for (int d = threadIdx.x; d < K; d += kThreads) {
      const float by = facts.through[d];
      facts.through[d] = facts.tokens.document[kChunk - 1] != 0 ? 0.f : gentle ? by * by : by;
    }
    __syncthreads();
    const auto* from = reinterpret_cast<const uint4*>(&facts);
    auto* to = reinterpret_cast<uint4*>(tile_at<Facts<K>>(work.facts, chunk, 1));
    for (int i = threadIdx.x; i < sizeof(Facts<K>) / 16; i += kThreads) to[i] = from[i];
  }
  // T in two parts.
  __device__ __forceinline__ void store_solve(T* to) const {
#pragma unroll
    for (int n = 0; n < 10; ++n) {
      const int row = n < 1 ? 0 : n < 3 ? 1 : n < 6 ? 2 : 3, column = n - row * (row + 1) / 2;
      const int r = 16 * row + threadIdx.x / 4 % 16, c = threadIdx.x / 64 * 8 + threadIdx.x % 4 * 2;
      const float2 x = *reinterpret_cast<const float2*>(s.system + r * kTriangularStride + 16 * column + c);
      uint32_t high, low;
      split<T>(high, low, x.x, x.y);
      reinterpret_cast<uint32_t*>(to)[n * kThreads + threadIdx.x] = high;
      reinterpret_cast<uint32_t*>(to + kPairs)[n * kThreads + threadIdx.x] = low;
    }
  }

  __device__ __forceinline__ void run() const {
    const int c = blockIdx.x;
    const int64_t first = static_cast<int64_t>(c) * kChunk, chunk = work.chunk(p, b, h, c);
    const int valid = valid_tokens(p, first);
    copy_rows(s.rows.keys, row_at<T>(p.k, b, first, kh), p.k.token, valid, K);
    copy_rows(s.rows.queries, row_at<T>(p.q, b, first, kh), p.q.token, valid, K);
    copy_async_commit();
    typename Base::Packed raw[kBlock];
    this->load_decays(raw, c, 0);
    if (block == 0) load_tokens<T>(s.facts.tokens, p, b, h, first);
    copy_async_wait<0>();
    __syncthreads();
    const bool gentle = this->decay_rows(s.rows, s.facts, s.before, s.system, raw, c, work.chunks);
    T* reads = tile_at<T>(work.reads, chunk, kPairs);
    if (gentle)
      this->make_pairs(s.rows, s.facts, s.system, nullptr, reads);
    else
      this->make_strong_pairs(c, s.rows, s.facts, s.before, s.system, nullptr, reads);
    __syncthreads();
    store_rows(tile_at<T>(work.queries, chunk, kChunk * K), s.rows.queries, s.before, gentle);
    store_rows(tile_at<T>(work.keys_in, chunk, kChunk * K), s.rows.keys, s.before, gentle);
    store_rows(tile_at<T>(work.keys_out, chunk, kChunk * K), s.rows.columns, s.facts.through, gentle);
    invert_unit_lower<T>(s.system);
    __syncthreads();
    store_solve(tile_at<T>(work.solve, chunk, 2 * kPairs));
    store_facts(chunk, gentle);
  }
};

template <int K, class Number>
__global__ __launch_bounds__(128, K == 256 ? 1 : 3) void prepare_vector_kernel_sm90(
    const __grid_constant__ CudaLinearAttention p, const __grid_constant__ Work work) {
  extern __shared__ __align__(128) unsigned char shared[];
  Prepare<K, Number>{{p, work, *reinterpret_cast<PrepareShared<K>*>(shared)}}.run();
}

}  // namespace

CudaStatus prepare_vector_sm90(const CudaLinearAttention& p, const Work& work, void* stream) {
  const auto run = [&](auto width, auto number) -> CudaStatus {
    constexpr int K = width();
    const auto kernel = prepare_vector_kernel_sm90<K, decltype(number)>;
    if (const auto error = allow_shared(kernel, sizeof(PrepareShared<K>))) return status_of(error);
    const dim3 grid(work.chunks, static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch));
    kernel<<<grid, 128, sizeof(PrepareShared<K>), static_cast<cudaStream_t>(stream)>>>(p, work);
    return last_status();
  };
  const auto with_number = [&](auto width) -> CudaStatus {
    return p.log_decay.type == CudaType::fp32 ? run(width, float{}) : run(width, bf16{});
  };
  if (p.key_width == 64) return with_number(std::integral_constant<int, 64>{});
  if (p.key_width == 128) return with_number(std::integral_constant<int, 128>{});
  return with_number(std::integral_constant<int, 256>{});
}

}  // namespace weft::kernels::delta
