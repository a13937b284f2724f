// Attention on tensor cores of sm_80 and newer, by mma.sync: 8 warps of 16 rows. Scores stay in registers and are the
// operand of the product that follows them: the backward pass over keys computes them transposed for that.
#include <algorithm>

#include "ops/attention/kernel_cuda_tile.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256, kRows = kMaskTile;
constexpr int kHalf = 64;

// c[16 rows from `row`] += a b', all columns of both tiles.
template <class T, int kWidth, int kA, int kB>
__device__ __forceinline__ void multiply(float (&c)[kB / 8][4], const Tile<kA, kWidth>& a, int row,
                                         const Tile<kB, kWidth>& b) {
#pragma unroll
  for (int k = 0; k < kWidth; k += 16) {
    uint32_t x[4];
    a.load_a(x, row, k);
#pragma unroll
    for (int n = 0; n < kB; n += 16) {
      uint32_t y[4];
      b.load_b(y, n, k);
      multiply_add<T>(c[n / 8], x, y[0], y[1]);
      multiply_add<T>(c[n / 8 + 1], x, y[2], y[3]);
    }
  }
}

// c[16 rows] += a b, a in registers.
template <class T, int kWidth, int kB>
__device__ __forceinline__ void multiply(float (&c)[kWidth / 8][4], const float (&a)[kB / 8][4],
                                         const Tile<kB, kWidth>& b) {
#pragma unroll
  for (int k = 0; k < kB; k += 16) {
    uint32_t x[4];
    as_operand<T>(x, a, k / 16);
#pragma unroll
    for (int n = 0; n < kWidth; n += 16) {
      uint32_t y[4];
      b.load_b_transposed(y, k, n);
      multiply_add<T>(c[n / 8], x, y[0], y[1]);
      multiply_add<T>(c[n / 8 + 1], x, y[2], y[3]);
    }
  }
}

// Two tiles, twice, of which one pair is filled while the other is used.
template <int kTileRows, int kWidth>
struct Pairs {
  static constexpr int kBytes = 4 * Tile<kTileRows, kWidth>::kBytes;
  char* data;
  __device__ Tile<kTileRows, kWidth> first(int stage) const {
    return {data + 2 * stage * Tile<kTileRows, kWidth>::kBytes};
  }
  __device__ Tile<kTileRows, kWidth> second(int stage) const {
    return {data + (2 * stage + 1) * Tile<kTileRows, kWidth>::kBytes};
  }
};

extern __shared__ __align__(1024) char shared_bytes[];

// Query tiles with the longest lists, under causal masks the last, go first.
__device__ __forceinline__ int tile_of_block() { return gridDim.x - 1 - blockIdx.x; }

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) forward_kernel(const __grid_constant__ AttentionCuda p) {
  const int tile = tile_of_block(), head = blockIdx.y, batch = blockIdx.z, key_head = head / p.group();
  const int first = tile * kRows, row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
  const Tile<kRows, kWidth> queries{shared_bytes};
  const Pairs<kHalf, kWidth> pairs{shared_bytes + queries.kBytes};
  const auto load = [&](const auto& step, int stage) {
    pairs.first(stage).template load<kThreads>(p.k, batch, key_head, step.first, p.keys, p.key_width,
                                               threadIdx.x);
    pairs.second(stage).template load<kThreads>(p.v, batch, key_head, step.first, p.keys, p.value_width,
                                                threadIdx.x);
  };
  Walk<kMaskTile / kHalf> walk(p.mask, true, batch, tile, head, 1);
  auto now = walk.step();
  queries.template load<kThreads>(p.q, batch, head, first, p.queries, p.key_width, threadIdx.x);
  if (now.there) load(now, 0);
  copy_async_commit();

  const Scoring scoring(p, head);
  const QueryLimits limits[2] = {query_limits(p.mask, batch, first + row + lane / 4, head),
                                 query_limits(p.mask, batch, first + row + lane / 4 + 8, head)};
  const KeySlots slots = key_slots(p.mask, batch);
  OnlineSoftmax softmax;
  float out[kWidth / 8][4] = {};
  for (int stage = 0; now.there; stage ^= 1) {
    walk.next();
    const auto next = walk.step();
    copy_async_wait<0>();
    __syncthreads();
    if (next.there) load(next, stage ^ 1);
    copy_async_commit();
    float s[kHalf / 8][4] = {}, shrink[2];
    multiply<T, kWidth>(s, queries, row, pairs.first(stage));
    finish_scores(p, scoring, batch, limits, slots, now.first, now.full, s);
    softmax.step(scoring.unit, s, shrink);
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[j][i] *= shrink[i / 2];
    multiply<T, kWidth>(out, s, pairs.second(stage));
    now = next;
  }
  copy_async_wait<0>();
  float lse[2], inverse[2];
  softmax.finish(scoring.unit, lse, inverse);
  const int64_t at = (int64_t{batch} * p.queries + first + row) * p.heads + head;
  store_rows(static_cast<T*>(p.out.data) + at * p.value_width, int64_t{p.heads} * p.value_width,
             p.queries - first - row, p.value_width, out, inverse);
#pragma unroll
  for (int r = 0; r < 2; ++r)
    if (lane % 4 == 0 && first + row + lane / 4 + 8 * r < p.queries)
      p.lse[at + (lane / 4 + 8 * r) * p.heads] = lse[r];
}

template <int kWidth>
constexpr int kStep = kWidth > 128 ? 32 : 64;  // keys, or queries, of a step of the backward kernels

template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) queries_kernel(const __grid_constant__ AttentionCuda p) {
  constexpr int kKeys = kStep<kWidth>;
  const int tile = tile_of_block(), head = blockIdx.y, batch = blockIdx.z, key_head = head / p.group();
  const int first = tile * kRows, row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
  const Tile<kRows, kWidth> queries{shared_bytes}, douts{shared_bytes + queries.kBytes};
  const Pairs<kKeys, kWidth> pairs{shared_bytes + 2 * queries.kBytes};
  const auto load = [&](const auto& step, int stage) {
    pairs.first(stage).template load<kThreads>(p.k, batch, key_head, step.first, p.keys, p.key_width,
                                               threadIdx.x);
    pairs.second(stage).template load<kThreads>(p.v, batch, key_head, step.first, p.keys, p.value_width,
                                                threadIdx.x);
  };
  Walk<kMaskTile / kKeys> walk(p.mask, true, batch, tile, head, 1);
  auto now = walk.step();
  queries.template load<kThreads>(p.q, batch, head, first, p.queries, p.key_width, threadIdx.x);
  douts.template load<kThreads>(p.dout, batch, head, first, p.queries, p.value_width, threadIdx.x);
  if (now.there) load(now, 0);
  copy_async_commit();

  const Scoring scoring(p, head);
  const QueryLimits limits[2] = {query_limits(p.mask, batch, first + row + lane / 4, head),
                                 query_limits(p.mask, batch, first + row + lane / 4 + 8, head)};
  const KeySlots slots = key_slots(p.mask, batch);
  const int64_t statistics = statistics_at(p, batch, head) + first + row + lane / 4;
  const float lse2[2] = {p.lse2[statistics], p.lse2[statistics + 8]},
              delta[2] = {p.delta[statistics], p.delta[statistics + 8]};
  float dq[kWidth / 8][4] = {}, dslopes[2] = {};
  for (int stage = 0; now.there; stage ^= 1) {
    walk.next();
    const auto next = walk.step();
    copy_async_wait<0>();
    __syncthreads();
    if (next.there) load(next, stage ^ 1);
    copy_async_commit();
    float s[kKeys / 8][4] = {}, dp[kKeys / 8][4] = {};
    multiply<T, kWidth>(s, queries, row, pairs.first(stage));
    multiply<T, kWidth>(dp, douts, row, pairs.second(stage));
    finish_gradients(p, scoring, batch, limits, slots, now.first, now.full, lse2, delta, s, dp, dslopes);
    multiply<T, kWidth>(dq, dp, pairs.first(stage));
    now = next;
  }
  copy_async_wait<0>();
  const int64_t at = (int64_t{batch} * p.queries + first + row) * p.heads + head;
  const float factor[2] = {p.scale, p.scale};
  store_rows(static_cast<T*>(p.dq.data) + at * p.key_width, int64_t{p.heads} * p.key_width,
             p.queries - first - row, p.key_width, dq, factor);
#pragma unroll
  for (int r = 0; p.dslopes && r < 2; ++r) {
    const float sum = warp_sum<4>(dslopes[r]);
    if (lane % 4 == 0 && first + row + lane / 4 + 8 * r < p.queries)
      p.dslopes[at + (lane / 4 + 8 * r) * p.heads] = sum;
  }
}

// dk (kPart 1), dv (2) or both (3): heads of 256 have too many sums for one pass.
template <class T, int kWidth, int kPart>
__global__ void __launch_bounds__(kThreads) keys_kernel(const __grid_constant__ AttentionCuda p) {
  constexpr int kQueries = kStep<kWidth>;
  const int first = blockIdx.x * kRows, key_head = blockIdx.y, batch = blockIdx.z;
  const int row = threadIdx.x / 32 * 16, lane = threadIdx.x % 32;
  const Tile<kRows, kWidth> keys{shared_bytes}, values{shared_bytes + keys.kBytes};
  const Pairs<kQueries, kWidth> pairs{shared_bytes + 2 * keys.kBytes};
  float* const statistics = reinterpret_cast<float*>(shared_bytes + 2 * keys.kBytes + pairs.kBytes);
  const auto load = [&](const auto& step, int stage) {
    pairs.first(stage).template load<kThreads>(p.q, batch, step.head, step.first, p.queries, p.key_width,
                                               threadIdx.x);
    pairs.second(stage).template load<kThreads>(p.dout, batch, step.head, step.first, p.queries,
                                                p.value_width, threadIdx.x);
    if (threadIdx.x < kQueries / 2) {  // lse2, then delta
      const float* from = threadIdx.x < kQueries / 4 ? p.lse2 : p.delta;
      const int column = threadIdx.x % (kQueries / 4) * 4;
      copy_async16(statistics + stage * 2 * kQueries + threadIdx.x * 4,
                   from + statistics_at(p, batch, step.head) + step.first + column);
    }
  };
  Walk<kMaskTile / kQueries> walk(p.mask, false, batch, blockIdx.x, key_head * p.group(), p.group());
  auto now = walk.step();
  keys.template load<kThreads>(p.k, batch, key_head, first, p.keys, p.key_width, threadIdx.x);
  values.template load<kThreads>(p.v, batch, key_head, first, p.keys, p.value_width, threadIdx.x);
  if (now.there) load(now, 0);
  copy_async_commit();

  const KeySlots slots = key_slots(p.mask, batch);
  float dk[kPart & 1 ? kWidth / 8 : 1][4] = {}, dv[kPart & 2 ? kWidth / 8 : 1][4] = {};
  for (int stage = 0; now.there; stage ^= 1) {
    walk.next();
    const auto next = walk.step();
    copy_async_wait<0>();
    __syncthreads();
    if (next.there) load(next, stage ^ 1);
    copy_async_commit();
    const float* lse2 = statistics + stage * 2 * kQueries;
    float s[kQueries / 8][4] = {}, dp[kQueries / 8][4] = {};
    multiply<T, kWidth>(s, keys, row, pairs.first(stage));
    if constexpr (kPart & 1) multiply<T, kWidth>(dp, values, row, pairs.second(stage));
    finish_gradients_transposed(p, Scoring(p, now.head), batch, now.head, now.first, slots,
                                first + row + lane / 4, now.full, lse2, lse2 + kQueries, s, dp);
    if constexpr (kPart & 2) multiply<T, kWidth>(dv, s, pairs.second(stage));
    if constexpr (kPart & 1) multiply<T, kWidth>(dk, dp, pairs.first(stage));
    now = next;
  }
  copy_async_wait<0>();
  const int64_t at = (int64_t{batch} * p.keys + first + row) * p.key_heads + key_head;
  const int rows = p.keys - first - row;
  if constexpr (kPart & 1) {
    const float factor[2] = {p.scale, p.scale};
    if (p.dk.data)
      store_rows(static_cast<T*>(p.dk.data) + at * p.key_width, int64_t{p.key_heads} * p.key_width, rows,
                 p.key_width, dk, factor);
  }
  if constexpr (kPart & 2) {
    const float factor[2] = {1, 1};
    if (p.dv.data)
      store_rows(static_cast<T*>(p.dv.data) + at * p.value_width, int64_t{p.key_heads} * p.value_width, rows,
                 p.value_width, dv, factor);
  }
}

// Calls body(T{}, width) for the 16-bit type and the padded head width of a problem.
template <class Body>
CudaStatus with_shape(const AttentionCuda& p, const Body& body) {
  const auto with_width = [&]<class T>(T type) -> CudaStatus {
    const int width = std::max(p.key_width, p.value_width);
    if (width <= 64) return body(type, std::integral_constant<int, 64>());
    if (width <= 128) return body(type, std::integral_constant<int, 128>());
    return body(type, std::integral_constant<int, 256>());
  };
  return p.q.type == CudaType::bf16 ? with_width(bf16{}) : with_width(fp16{});
}

template <class Kernel>
CudaStatus launch(Kernel* kernel, const AttentionCuda& p, int bytes, dim3 grid, void* stream) {
  if (const auto error = allow_shared(kernel, bytes)) return status_of(error);
  kernel<<<grid, kThreads, bytes, static_cast<cudaStream_t>(stream)>>>(p);
  return last_status();
}

}  // namespace

CudaStatus attention_forward_mma(const AttentionCuda& p, void* stream) {
  return with_shape(p, [&]<class T, int kWidth>(T, std::integral_constant<int, kWidth>) {
    constexpr int kBytes = Tile<kRows, kWidth>::kBytes + Pairs<kHalf, kWidth>::kBytes;
    if (kBytes > shared_limit()) return attention_forward_plain(p, stream);
    const dim3 grid(p.mask.query_tiles, p.heads, p.batch);
    return launch(forward_kernel<T, kWidth>, p, kBytes, grid, stream);
  });
}

CudaStatus attention_backward_mma(const AttentionCuda& p, void* stream) {
  return with_shape(p, [&]<class T, int kWidth>(T, std::integral_constant<int, kWidth>) -> CudaStatus {
    constexpr int kBytes = 2 * Tile<kRows, kWidth>::kBytes + Pairs<kStep<kWidth>, kWidth>::kBytes;
    constexpr int kKeyBytes = kBytes + 4 * kStep<kWidth> * static_cast<int>(sizeof(float));
    if (kKeyBytes > shared_limit()) return attention_backward_plain(p, stream);
    if (p.queries > 0) {
      const dim3 grid(p.mask.query_tiles, p.heads, p.batch);
      if (const auto failed = launch(queries_kernel<T, kWidth>, p, kBytes, grid, stream)) return failed;
    }
    if (p.keys == 0 || (!p.dk.data && !p.dv.data)) return nullptr;
    const dim3 grid(p.mask.key_tiles, p.key_heads, p.batch);
    if constexpr (kWidth <= 128) {
      return launch(keys_kernel<T, kWidth, 3>, p, kKeyBytes, grid, stream);
    } else {
      const auto failed = p.dk.data ? launch(keys_kernel<T, kWidth, 1>, p, kKeyBytes, grid, stream) : nullptr;
      return failed || !p.dv.data ? failed : launch(keys_kernel<T, kWidth, 2>, p, kKeyBytes, grid, stream);
    }
  });
}

}  // namespace weft::kernels
