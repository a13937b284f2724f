// Delta rule with a vector decay: what the chunks can work out before the state is known.
#include "ops/linear_attention/delta_prepare.cuh"
#include "ops/linear_attention/delta_vector.cuh"

namespace weft::kernels::delta {
namespace {

constexpr int kThreads = kPrepareThreads;

template <class T, int K>
struct Shared {
  static constexpr int kHat = K * kSpreadRows, kDecayStride = K + 4;
  bf16 queries[kHat], keys[kHat];  // rows: e^G q, e^G k. First q and k.
  bf16 columns[kHat];              // e^(total - G) k
  // Log decays, then their sums from the start of a block.
  float decays[kChunk * kDecayStride];
  float system[kChunk * kTriangularStride];
  float totals[kBlocks][K];
  float middle[kBlocks * (kBlocks + 1) / 2][K];  // of blocks I <= R at R (R + 1) / 2 + I
  float starts[kBlocks][K], ends[kBlocks][K];  // decays from the chunk's start to a block, from it to the end
  Tokens tokens;
};

// The block of tokens of a warp, and the first of the channels that two warps share it by.
struct Place {
  int block = threadIdx.x / 32 % kBlocks, channel = threadIdx.x / 128 * 64 + threadIdx.x % 32 * 2;
};

// Sums from the start of the warp's block of tokens.
template <class T, int K>
__device__ __forceinline__ void add_decays(Shared<T, K>& s) {
  const Place at;
  for (int channel = at.channel; channel < K; channel += 128) {
    float2 sum = {0.f, 0.f};
#pragma unroll
    for (int t = 0; t < kBlock; ++t) {
      auto* x = reinterpret_cast<float2*>(s.decays + (kBlock * at.block + t) * s.kDecayStride + channel);
      sum.x += bounded_log2(x->x), sum.y += bounded_log2(x->y);
      *x = sum;
    }
    *reinterpret_cast<float2*>(s.totals[at.block] + channel) = sum;
  }
}

// The decays between blocks, from the chunk's start and to its end, and D.
template <class T, int K>
__device__ __forceinline__ void store_middle(Shared<T, K>& s, float* through) {
  for (int channel = threadIdx.x; channel < K; channel += kThreads) {
    float end = 0;
#pragma unroll
    for (int r = kBlocks - 1; r >= 0; --r) {
      s.ends[r][channel] = fast_exp2(end);
      end += s.totals[r][channel];
    }
#pragma unroll
    for (int r = 0; r < kBlocks; ++r) {
      float sum = 0;
      s.middle[r * (r + 1) / 2 + r][channel] = fast_exp2(-s.totals[r][channel]);
#pragma unroll
      for (int i = r - 1; i >= 0; --i) {
        s.middle[r * (r + 1) / 2 + i][channel] = fast_exp2(sum);
        sum += s.totals[i][channel];
      }
      s.starts[r][channel] = fast_exp2(sum);
      if (r == kBlocks - 1)
        through[channel] = s.tokens.document[kChunk - 1] == 0 ? fast_exp2(sum + s.totals[r][channel]) : 0.f;
    }
  }
}

// Rows and columns, and to device memory the tiles Q_in, K_in, K_out.
template <class T, int K>
__device__ __forceinline__ void decay_rows(Shared<T, K>& s, const Work& work, int64_t chunk) {
  T* queries = tile_at<T>(work.queries, chunk, kChunk * K);
  T* keys_in = tile_at<T>(work.keys_in, chunk, kChunk * K);
  T* keys_out = tile_at<T>(work.keys_out, chunk, kChunk * K);
  for (int n = threadIdx.x; n < kChunk * K / 8; n += kThreads) {
    const int t = n % kChunk, group = n / kChunk, block = t / kBlock;
    bf16 *query = piece<kSpreadRows>(s.queries, t, group), *key = piece<kSpreadRows>(s.keys, t, group);
    const DecayedRow x(reinterpret_cast<const T*>(query), reinterpret_cast<const T*>(key),
                       s.decays + t * s.kDecayStride + 8 * group, s.totals[block] + 8 * group);
    store_numbers(query, x.query), store_numbers(key, x.key);
    store_numbers(piece<kSpreadRows>(s.columns, t, group), x.column);
    float factor[8], y[8];
    load_floats(factor, s.starts[block] + 8 * group);
    multiply_floats(y, x.query, factor);
    store_numbers(piece<kChunk>(queries, t, group), y);
    multiply_floats(y, x.key, factor);
    store_numbers(piece<kChunk>(keys_in, t, group), y);
    load_floats(factor, s.ends[block] + 8 * group);
    multiply_floats(y, x.column, factor);
    store_numbers(piece<kChunk>(keys_out, t, group), y);
  }
}

// Rows 2 (l % 4) and on of a right operand's channels times one number each.
__device__ __forceinline__ void scale_operand(uint32_t (&b)[4], const float* scale) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 by = *reinterpret_cast<const float2*>(scale + i % 2 * 8 + lane % 4 * 2);
    const float2 x = unpack<bf16>(b[i]);
    b[i] = pack<bf16>(x.x * by.x, x.y * by.y);
  }
}

// The products of rows of x and of keys within the warp's block of tokens, pair by pair.
template <class T, int K>
__device__ __noinline__ void multiply_pairs(const Shared<T, K>& s, float (&c)[2][4], const CudaRows& x,
                                            const CudaLinearAttention& p, int b, int h, int64_t first) {
  const int block = threadIdx.x / 32 % kBlocks, lane = threadIdx.x % 32, kh = key_head(p, h);
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      c[half][i] = 0;
      const int r = kBlock * block + lane / 4 + i / 2 * 8,
                t = kBlock * block + 8 * half + lane % 4 * 2 + i % 2;
      if (t > r || first + r >= p.tokens) continue;
      const T* row = row_at<T>(x, b, first + r, kh);
      const T* key = row_at<T>(p.k, b, first + t, kh);
      for (int d = 0; d < K; ++d)
        c[half][i] += to_float(row[d]) * to_float(key[d]) *
                      fast_exp2(s.decays[r * s.kDecayStride + d] - s.decays[t * s.kDecayStride + d]);
    }
}

// Four warps have the system, four P.
template <class T, int K>
__device__ __forceinline__ void multiply_keys(Shared<T, K>& s, T* reads, const CudaLinearAttention& p, int b,
                                              int h, int64_t first) {
  const int block = threadIdx.x / 32 % kBlocks;
  const bool queries = threadIdx.x >= kThreads / 2;
  const bf16* rows = queries ? s.queries : s.keys;
  float c[8][4] = {};
#pragma unroll 2
  for (int d = 0; d < K; d += 16) {
    uint32_t a[4], x[4];
    left<kSpreadRows>(a, rows, kBlock * block, d);
#pragma unroll
    for (int i = 0; i < kBlocks; ++i)
      if (i <= block) {
        right_transposed<kSpreadRows>(x, s.columns, kBlock * i, d);
        if (i != block - 1) scale_operand(x, s.middle[block * (block + 1) / 2 + i] + d);
        multiply_add_pair<bf16>(c[2 * i], c[2 * i + 1], a, x);
      }
  }
  float least = 0;
  for (int channel = threadIdx.x % 32; channel < K; channel += 32)
    least = fminf(least, s.totals[block][channel]);
  if (__any_sync(0xffffffff, least < -kMostRange)) {
    float pairs[2][4];
    multiply_pairs<T, K>(s, pairs, queries ? p.q : p.k, p, b, h, first);
#pragma unroll
    for (int r = 0; r < kBlocks; ++r)
      if (r == block)
#pragma unroll
        for (int i = 0; i < 8; ++i) c[2 * r + i / 4][i % 4] = pairs[i / 4][i % 4];
  }
  if (queries)
    store_reads(reads, block, c, p.scale, s.tokens);
  else
    store_system(s.system, block, c, s.tokens);
}

// A block has one chunk of a head.
template <class T, int K>
__global__ __launch_bounds__(kThreads) void prepare_vector_kernel(
    const __grid_constant__ CudaLinearAttention p, const __grid_constant__ Work work) {
  extern __shared__ __align__(128) unsigned char shared[];
  auto& s = *reinterpret_cast<Shared<T, K>*>(shared);
  const int h = blockIdx.y, b = blockIdx.z;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kChunk;
  const int64_t chunk = work.chunk(p, b, h, blockIdx.x);
  const int valid = valid_tokens(p, first);

  load_decays<T, Shared<T, K>::kDecayStride>(s.decays, p, b, h, first, 0, K);
  copy_async_commit();
  copy_rows(reinterpret_cast<T*>(s.keys), row_at<T>(p.k, b, first, key_head(p, h)), p.k.token, valid, K);
  copy_rows(reinterpret_cast<T*>(s.queries), row_at<T>(p.q, b, first, key_head(p, h)), p.q.token, valid, K);
  copy_async_commit();
  if (threadIdx.x < 32) load_tokens<T>(s.tokens, p, b, h, first);
  copy_async_wait<1>();
  __syncthreads();
  add_decays(s);
  copy_async_wait<0>();
  __syncthreads();
  auto& facts = *tile_at<Facts<K>>(work.facts, chunk, 1);
  store_facts(facts, p, s.tokens);
  store_middle(s, facts.through);
  __syncthreads();
  decay_rows(s, work, chunk);
  __syncthreads();
  multiply_keys(s, tile_at<T>(work.reads, chunk, kPairs), p, b, h, first);
  invert_unit_lower<T>(s.system);
  __syncthreads();
  store_solve(tile_at<T>(work.solve, chunk, 2 * kPairs), s.system);
}

}  // namespace

CudaStatus prepare_vector(const CudaLinearAttention& p, const Work& work, void* stream) {
  if (p.capability == 90 && p.v.type == CudaType::bf16) return prepare_vector_sm90(p, work, stream);
  return with_type_and_width(p, [&](auto type, auto width) -> CudaStatus {
    const auto kernel = prepare_vector_kernel<decltype(type), width()>;
    constexpr size_t kBytes = sizeof(Shared<decltype(type), width()>);
    if (const auto error = allow_shared(kernel, kBytes)) return status_of(error);
    const dim3 grid(work.chunks, static_cast<unsigned>(p.heads), static_cast<unsigned>(p.batch));
    kernel<<<grid, kThreads, kBytes, static_cast<cudaStream_t>(stream)>>>(p, work);
    return last_status();
  });
}

}  // namespace weft::kernels::delta
