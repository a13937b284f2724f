// Delta rule: gradients of the inputs, a chunk at a time, from the states and their gradients that the passes left.
#include "ops/linear_attention/delta_gradients.cuh"

namespace weft::kernels::delta {
namespace {

template <class T>
struct Shared {
  Slice<T> slices[2];
  T q[kSpreadTile], k[kSpreadTile];
  Tokens tokens;
  float from_before[kChunk], to_after[kChunk];
  float dbeta[2][kChunk], ddecay[2][kChunk], written[2][kChunk];  // by halves of the warps
  float through[kThreads / 32];
};

// The thread's share of the sum of S dS.
template <class T>
__device__ __forceinline__ float multiply_states(const Slice<T>& s) {
  float sum = 0;
  for (int i = threadIdx.x; i < kTile / 8; i += kThreads) {
    const uint4 x = *reinterpret_cast<const uint4*>(s.states + 8 * i),
                y = *reinterpret_cast<const uint4*>(s.dstates + 8 * i);
    const uint32_t xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 a = unpack<T>(xs[j]), b = unpack<T>(ys[j]);
      sum += a.x * b.x + a.y * b.y;
    }
  }
  return sum;
}

// The decays of what goes through the states; the warp's share of the sums of K_out dK_out over a token's channels.
template <class T>
__device__ __forceinline__ void decay_products(Shared<T>& s, Products& x, const Place& at, float scale) {
  float written[2] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = at.lane_row + i / 2 * 8;
      const float2 k = pair_of<kSpreadRows>(s.k, t, at.lane_column + 8 * j);
      x.dq[j][i] *= scale * s.from_before[t];
      x.erased[j][i] *= -s.from_before[t];
      x.dk[j][i] *= s.to_after[t];
      written[i / 2] += x.dk[j][i] * (i % 2 ? k.y : k.x);
    }
  store_row_sums(s.written[at.half], at, written);
}

// Adds the products of the chunk's pairs.
template <class T>
__device__ __forceinline__ void add_pairs(const Shared<T>& s, const Pairs<T>& pairs, Products& x,
                                          const Place& at) {
  for (int i = 0; i <= at.row; i += 16) {
    uint32_t a[4];
    left<kChunk>(a, pairs.dreads, at.row, i);
    add_product<kSpreadRows>(x.dq, a, s.k, i, at.column);
    left<kChunk>(a, pairs.dsystem, at.row, i);
    add_product<kSpreadRows>(x.erased, a, s.k, i, at.column);
  }
  for (int r = at.row; r < kChunk; r += 16) {
    uint32_t a[4];
    left_transposed<kChunk>(a, pairs.dreads, r, at.row);
    add_product<kSpreadRows>(x.dk, a, s.q, r, at.column);
    left_transposed<kChunk>(a, pairs.dsystem_beta, r, at.row);
    add_product<kSpreadRows>(x.dk, a, s.k, r, at.column);
  }
}

// dlog_decay from the gradients of the decays' sums, and dbeta; by the first warp.
template <class T>
__device__ __forceinline__ void store_token_gradients(const Shared<T>& s, float* dlog_decay, float* dbeta,
                                                      int64_t stride, int valid) {
  const int lane = threadIdx.x;
  float decay[2], written = 0;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane + i;
    decay[i] = s.ddecay[0][t] + s.ddecay[1][t];
    written += s.written[0][t] + s.written[1][t];
    if (dbeta && t < valid) dbeta[t * stride] = s.dbeta[0][t] + s.dbeta[1][t];
  }
  if (!dlog_decay) return;
  // What the last token's sum of decays is in: the writes' decays to the chunk's end and the state's.
  float end = warp_sum(written);
  for (int i = 0; i < kThreads / 32; ++i) end += s.tokens.through() * s.through[i];
  float sum = decay[0] + decay[1];
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const float behind = __shfl_down_sync(0xffffffff, sum, step);
    if (lane + step < 32) sum += behind;
  }
  if (2 * lane < valid) dlog_decay[2 * lane * stride] = sum + end;
  if (2 * lane + 1 < valid) dlog_decay[(2 * lane + 1) * stride] = sum - decay[0] + end;
}

template <class T>
__global__ __launch_bounds__(kThreads,
                             2) void gradients_kernel(const __grid_constant__ CudaLinearAttention p,
                                                      const __grid_constant__ CudaLinearAttentionGradients g,
                                                      const __grid_constant__ Work work) {
  extern __shared__ __align__(128) unsigned char shared[];
  auto& s = *reinterpret_cast<Shared<T>*>(shared);
  auto& pairs = *reinterpret_cast<Pairs<T>*>(&s.slices[0]);
  static_assert(sizeof(Pairs<T>) <= sizeof(Slice<T>));
  const Chunk at{p, g, work};
  const Place place;

  copy_tokens(s.tokens, p, work, at.chunk);
  load_slice(s.slices[0], at, 0);
  copy_async_commit();
  if (at.V > kSlice) load_slice(s.slices[1], at, kSlice);
  load_keys(s.q, s.k, at);
  copy_async_commit();

  Products x;
  float through = 0;
  multiply_values(s.slices, x, s.tokens, at,
                  [&](const Slice<T>& slice) { through += multiply_states(slice); });
  copy_async_wait<0>();
  store_pairs(pairs, x, s.tokens, place, p.scale);
  if (threadIdx.x < kChunk) {
    s.from_before[threadIdx.x] = s.tokens.from_before(threadIdx.x);
    s.to_after[threadIdx.x] = s.tokens.to_after(threadIdx.x);
  }
  if (const float sum = warp_sum(through); threadIdx.x % 32 == 0) s.through[threadIdx.x / 32] = sum;
  __syncthreads();
  decay_products(s, x, place, p.scale);
  add_pairs(s, pairs, x, place);
  __syncthreads();  // all products with q and k are done

  float dbeta[2] = {}, ddecay[2] = {};
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int t = place.lane_row + 8 * i, column = place.lane_column + 8 * j;
      const float2 k = pair_of<kSpreadRows>(s.k, t, column), q = pair_of<kSpreadRows>(s.q, t, column);
      const float beta = s.tokens.beta[t];
      const float2 dq = {x.dq[j][2 * i], x.dq[j][2 * i + 1]},
                   erased = {x.erased[j][2 * i], x.erased[j][2 * i + 1]};
      const float2 dk = {x.dk[j][2 * i] + beta * erased.x, x.dk[j][2 * i + 1] + beta * erased.y};
      const float recall = erased.x * k.x + erased.y * k.y;
      dbeta[i] += recall;
      ddecay[i] += q.x * dq.x + q.y * dq.y + 2 * beta * recall - (k.x * dk.x + k.y * dk.y);
      store_key_pair(g.dq, s.q, at, t, column, dq.x, dq.y);
      store_key_pair(g.dk, s.k, at, t, column, dk.x, dk.y);
    }
  store_row_sums(s.dbeta[place.half], place, dbeta);
  store_row_sums(s.ddecay[place.half], place, ddecay);
  __syncthreads();
  store_tile(g.dq, s.q, at);
  store_tile(g.dk, s.k, at);
  if (threadIdx.x < 32)
    store_token_gradients(s, token_gradient(g.dlog_decay, at, 0), token_gradient(g.dbeta, at, 1), p.heads,
                          at.valid);
}

// Sums of `slices` numbers, 2 count apart.
__global__ void add_partial(float* to, const float* partial, int64_t count, int slices) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  float sum = 0;
  for (int slice = 0; slice < slices; ++slice) sum += partial[2 * count * slice + i];
  to[i] = sum;
}

}  // namespace

CudaStatus gradients(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g, const Work& work,
                     void* stream) {
  const auto run = [&](auto type) -> CudaStatus {
    const auto kernel = gradients_kernel<decltype(type)>;
    if (const auto error = allow_shared(kernel, sizeof(Shared<decltype(type)>))) return status_of(error);
    const dim3 grid(static_cast<unsigned>(work.chunks * p.key_width / kSlice), static_cast<unsigned>(p.heads),
                    static_cast<unsigned>(p.batch));
    kernel<<<grid, kThreads, sizeof(Shared<decltype(type)>), static_cast<cudaStream_t>(stream)>>>(p, g, work);
    return last_status();
  };
  if (const CudaStatus failed = p.v.type == CudaType::bf16 ? run(bf16{}) : run(fp16{})) return failed;
  return add_slices(p, g, work, stream);
}

CudaStatus add_slices(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g, const Work& work,
                      void* stream) {
  if (!work.partial) return nullptr;
  const int slices = static_cast<int>(p.key_width) / kSlice;
  const int64_t count = p.batch * p.tokens * p.heads;
  const auto blocks = static_cast<unsigned>((count + 255) / 256);
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  if (g.dlog_decay && p.decay != Decay::vector)
    add_partial<<<blocks, 256, 0, cuda_stream>>>(g.dlog_decay, work.partial, count, slices);
  if (g.dbeta) add_partial<<<blocks, 256, 0, cuda_stream>>>(g.dbeta, work.partial + count, count, slices);
  return last_status();
}

}  // namespace weft::kernels::delta
