// Delta rule with a vector decay: gradients of the inputs, a chunk at a time.
#include "ops/linear_attention/delta_gradients.cuh"
#include "ops/linear_attention/delta_vector.cuh"

namespace weft::kernels::delta {
namespace {

constexpr int kSumStride = kSlice + 4;  // floats

template <class T>
struct Shared {
  union {
    Slice<T> slices[1];
    struct {
      Pairs<bf16> pairs;
      bf16 queries[kSpreadTile], keys[kSpreadTile],
          columns[kSpreadTile];  // with their decays (delta_vector.cuh)
    } products;
  };
  T q[kSpreadTile], k[kSpreadTile];
  // Log decays, their log2 sums from the start of a token's block, then gradients of their sums.
  float sums[kChunk * kSumStride];
  float totals[kBlocks][kSlice];  // of a block
  float passes[kBlocks][kSlice];  // 2^totals
  float starts[kBlocks][kSlice],
      ends[kBlocks][kSlice];       // decays from the chunk's start to a block, from it to the end
  float through[2][kSlice];        // sum over the values of S dS, by halves of the values
  float written[kBlocks][kSlice];  // sums of K_out dK_out over a block's tokens
  float dbeta[2][kChunk];          // by halves of the warps
  Tokens tokens;
};

// A thread sums the decays of one channel over one block of tokens.
template <class T>
__device__ __forceinline__ void add_decays(Shared<T>& s) {
  const int channel = threadIdx.x % kSlice, block = threadIdx.x / kSlice;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kBlock; ++i) {
    float& x = s.sums[(kBlock * block + i) * kSumStride + channel];
    sum += bounded_log2(x);
    x = sum;
  }
  s.totals[block][channel] = sum;
  s.passes[block][channel] = fast_exp2(sum);
}

// The same thread: the decays from and to the block, rows and columns.
template <class T>
__device__ __forceinline__ void decay_rows(Shared<T>& s) {
  const int channel = threadIdx.x % kSlice, block = threadIdx.x / kSlice;
  float start = 0, end = 0;
  for (int i = 0; i < block; ++i) start += s.totals[i][channel];
  for (int i = block + 1; i < kBlocks; ++i) end += s.totals[i][channel];
  s.starts[block][channel] = fast_exp2(start);
  s.ends[block][channel] = fast_exp2(end);
  const float total = s.totals[block][channel];
#pragma unroll 4
  for (int i = 0; i < kBlock; ++i) {
    const int t = kBlock * block + i, at = (channel / 8 * kSpreadRows + t) * 8 + channel % 8;
    const float sum = s.sums[t * kSumStride + channel];
    const float row = fast_exp2(sum), q = to_float(s.q[at]), k = to_float(s.k[at]);
    s.products.queries[at] = from_float<bf16>(q * row);
    s.products.keys[at] = from_float<bf16>(k * row);
    s.products.columns[at] = from_float<bf16>(k * fast_exp2(total - sum));
  }
}

// Sums over the values of S dS for every channel, spread over the threads: a lane has the sum of its warp's rows for the
// channel `visited_channel`.
template <class T>
__device__ __forceinline__ float multiply_states(const Slice<T>& s) {
  float x[16];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int at = (threadIdx.x + kThreads * n) * 8;
    const uint4 a = *reinterpret_cast<const uint4*>(s.states + at),
                b = *reinterpret_cast<const uint4*>(s.dstates + at);
    const uint32_t as[4] = {a.x, a.y, a.z, a.w}, bs[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 u = unpack<T>(as[j]), w = unpack<T>(bs[j]);
      x[8 * n + 2 * j] = u.x * w.x, x[8 * n + 2 * j + 1] = u.y * w.y;
    }
  }
#pragma unroll
  for (int width = 8; width > 0; width /= 2) {
    const bool upper = threadIdx.x & (2 * width);
#pragma unroll
    for (int i = 0; i < width; ++i) {
      const float mine = upper ? x[i + width] : x[i], other = upper ? x[i] : x[i + width];
      x[i] = mine + __shfl_xor_sync(0xffffffff, other, 2 * width);
    }
  }
  return x[0] + __shfl_xor_sync(0xffffffff, x[0], 1);
}
__device__ __forceinline__ int visited_channel() {
  const int index = threadIdx.x % 32 / 2;  // of the 16 sums
  return (threadIdx.x / kChunk + index / 8 * 4) * 8 + index % 8;
}

__device__ __forceinline__ void scale_columns(Part& x, const float* scale) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float2 by = *reinterpret_cast<const float2*>(scale + 8 * j);
    x[j][0] *= by.x, x[j][1] *= by.y, x[j][2] *= by.x, x[j][3] *= by.y;
  }
}

// What the pairs within a block of tokens give, pair by pair, where a block decays too much for the columns' range.
struct Sums {
  float query, erased, key;
};
template <class T>
__device__ __noinline__ Sums multiply_pairs(Shared<T>& s, int t, int channel) {
  Sums x = {};
  const int first = t / kBlock * kBlock;
  const auto number = [&](auto* tile, int row, int column) {
    return to_float(piece<kChunk>(tile, row, column / 8)[column % 8]);
  };
  const auto hat = [&](const T* tile, int row) {
    return to_float(piece<kSpreadRows>(tile, row, channel / 8)[channel % 8]);
  };
  const float* sums = s.sums + channel;
  for (int i = first; i <= t; ++i) {
    const float k = hat(s.k, i) * fast_exp2(sums[t * kSumStride] - sums[i * kSumStride]);
    x.query += number(s.products.pairs.dreads, t, i) * k;
    x.erased += number(s.products.pairs.dsystem, t, i) * k;
  }
  for (int r = t; r < first + kBlock; ++r) {
    const float decay = fast_exp2(sums[r * kSumStride] - sums[t * kSumStride]);
    x.key += decay * (number(s.products.pairs.dreads, r, t) * hat(s.q, r) +
                      number(s.products.pairs.dsystem_beta, r, t) * hat(s.k, r));
  }
  return x;
}

// Adds the products of the chunk's pairs to what came through the states.
template <class T>
__device__ __forceinline__ void add_pairs(Shared<T>& s, Products& x, const Place& at) {
  const int block = at.row / kBlock, lane = threadIdx.x % 32;
  const bool apart = __any_sync(0xffffffff, s.totals[block][at.column + lane] < -kMostRange);
  // Of blocks i < block: times what lies between them and this one. Then the block itself.
  Part query = {}, erased = {}, key = {};
  const int blocks = apart ? block : block + 1;
  for (int i = 0; i < blocks; ++i) {
    if (i > 0) {
      scale_columns(query, s.passes[i] + at.lane_column);
      scale_columns(erased, s.passes[i] + at.lane_column);
    }
    uint32_t a[4];
    left<kChunk>(a, s.products.pairs.dreads, at.row, kBlock * i);
    add_product<kSpreadRows>(query, a, s.products.columns, kBlock * i, at.column);
    left<kChunk>(a, s.products.pairs.dsystem, at.row, kBlock * i);
    add_product<kSpreadRows>(erased, a, s.products.columns, kBlock * i, at.column);
  }
  for (int r = kBlocks - 1; r >= (apart ? block + 1 : block); --r) {
    if (r < kBlocks - 1) scale_columns(key, s.passes[r] + at.lane_column);
    uint32_t a[4];
    left_transposed<kChunk>(a, s.products.pairs.dreads, kBlock * r, at.row);
    add_product<kSpreadRows>(key, a, s.products.queries, kBlock * r, at.column);
    left_transposed<kChunk>(a, s.products.pairs.dsystem_beta, kBlock * r, at.row);
    add_product<kSpreadRows>(key, a, s.products.keys, kBlock * r, at.column);
  }
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = at.lane_row + i / 2 * 8, channel = at.lane_column + 8 * j + i % 2;
      const float sum = s.sums[t * kSumStride + channel], total = s.totals[block][channel];
      const float row = fast_exp2(apart ? sum : sum - total), column = fast_exp2(apart ? total - sum : -sum);
      x.dq[j][i] += row * query[j][i];
      x.erased[j][i] += row * erased[j][i];
      x.dk[j][i] += column * key[j][i];
      if (!apart) continue;
      const Sums pairs = multiply_pairs(s, t, channel);
      x.dq[j][i] += pairs.query;
      x.erased[j][i] += pairs.erased;
      x.dk[j][i] += pairs.key;
    }
}

// The decays of what goes through the states; sums of K_out dK_out.
template <class T>
__device__ __forceinline__ void decay_products(Shared<T>& s, Products& x, const Place& at, float scale) {
  const int block = at.row / kBlock;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    float written[2] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = at.lane_row + i / 2 * 8, channel = at.lane_column + 8 * j + i % 2;
      const float sum = s.sums[t * kSumStride + channel];
      const float before = s.tokens.from_before(t) * s.starts[block][channel] * fast_exp2(sum);
      const float2 k = pair_of<kSpreadRows>(s.k, t, at.lane_column + 8 * j);
      x.dq[j][i] *= scale * before;
      x.erased[j][i] *= -before;
      x.dk[j][i] *= s.tokens.to_after(t) * s.ends[block][channel] * fast_exp2(s.totals[block][channel] - sum);
      written[i % 2] += x.dk[j][i] * (i % 2 ? k.y : k.x);
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) written[i] += __shfl_xor_sync(0xffffffff, written[i], step);
      if (threadIdx.x % 32 < 4) s.written[block][at.lane_column + 8 * j + i] = written[i];
    }
  }
}

// dlog_decay from the gradients of the decays' sums: a thread has one channel of one block of tokens.
template <class T>
__device__ __forceinline__ void store_decay_gradients(Shared<T>& s, float* to, int64_t stride, int valid) {
  const int channel = threadIdx.x % kSlice, block = threadIdx.x / kSlice;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kBlock; ++i) sum += s.sums[(kBlock * block + i) * kSumStride + channel];
  s.totals[block][channel] = sum;
  __syncthreads();
  // What the last token's sum of decays is in: the writes' decays to the chunk's end and the state's.
  float rest = s.tokens.through() * s.starts[kBlocks - 1][channel] * s.passes[kBlocks - 1][channel] *
               (s.through[0][channel] + s.through[1][channel]);
  for (int i = 0; i < kBlocks; ++i) rest += s.written[i][channel];
  for (int i = kBlocks - 1; i > block; --i) rest += s.totals[i][channel];
  for (int i = kBlock - 1; i >= 0; --i) {
    const int t = kBlock * block + i;
    rest += s.sums[t * kSumStride + channel];
    if (t < valid) to[t * stride + channel] = rest;
  }
}

template <class T>
__global__ __launch_bounds__(kThreads, 2) void gradients_vector_kernel(
    const __grid_constant__ CudaLinearAttention p, const __grid_constant__ CudaLinearAttentionGradients g,
    const __grid_constant__ Work work) {
  extern __shared__ __align__(128) unsigned char shared[];
  auto& s = *reinterpret_cast<Shared<T>*>(shared);
  const Chunk at{p, g, work};
  const Place place;

  copy_tokens(s.tokens, p, work, at.chunk);
  load_decays<T, kSumStride>(s.sums, p, at.b, at.h, at.first, at.d, kSlice);
  load_slice(s.slices[0], at, 0);
  load_keys(s.q, s.k, at);
  copy_async_commit();

  Products x;
  float through = 0;
  multiply_values(s.slices, x, s.tokens, at,
                  [&](const Slice<T>& slice) { through += multiply_states(slice); });
  store_pairs(s.products.pairs, x, s.tokens, place, p.scale);
  if (threadIdx.x % 2 == 0) s.through[threadIdx.x / 32 % 2][visited_channel()] = through;
  add_decays(s);
  __syncthreads();
  decay_rows(s);
  __syncthreads();

  decay_products(s, x, place, p.scale);
  add_pairs(s, x, place);
  __syncthreads();  // the sums of decays, q and k have been read
  float dbeta[2] = {};
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
      const float2 recall = {erased.x * k.x, erased.y * k.y};
      dbeta[i] += recall.x + recall.y;
      *reinterpret_cast<float2*>(s.sums + t * kSumStride + column) = make_float2(
          q.x * dq.x + 2 * beta * recall.x - k.x * dk.x, q.y * dq.y + 2 * beta * recall.y - k.y * dk.y);
      store_key_pair(g.dq, s.q, at, t, column, dq.x, dq.y);
      store_key_pair(g.dk, s.k, at, t, column, dk.x, dk.y);
    }
  store_row_sums(s.dbeta[place.half], place, dbeta);
  __syncthreads();
  store_tile(g.dq, s.q, at);
  store_tile(g.dk, s.k, at);
  float* to = token_gradient(g.dbeta, at, 1);
  if (to && threadIdx.x < at.valid)
    to[threadIdx.x * p.heads] = s.dbeta[0][threadIdx.x] + s.dbeta[1][threadIdx.x];
  if (g.dlog_decay)
    store_decay_gradients(s, g.dlog_decay + at.head_row * at.K + at.d, p.heads * at.K, at.valid);
}

}  // namespace

CudaStatus gradients_vector(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                            const Work& work, void* stream) {
  const auto run = [&](auto type) -> CudaStatus {
    const auto kernel = gradients_vector_kernel<decltype(type)>;
    if (const auto error = allow_shared(kernel, sizeof(Shared<decltype(type)>))) return status_of(error);
    const dim3 grid(static_cast<unsigned>(work.chunks * p.key_width / kSlice), static_cast<unsigned>(p.heads),
                    static_cast<unsigned>(p.batch));
    kernel<<<grid, kThreads, sizeof(Shared<decltype(type)>), static_cast<cudaStream_t>(stream)>>>(p, g, work);
    return last_status();
  };
  if (const CudaStatus failed = p.v.type == CudaType::bf16 ? run(bf16{}) : run(fp16{})) return failed;
  return add_slices(p, g, work, stream);
}

}  // namespace weft::kernels::delta
