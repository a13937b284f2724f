// Delta rule, backward on Hopper: what its kernels share, with and without vector decay. A block walks over the chunks of a
// head in reverse with the gradient of the state and has all gradients of a chunk at once, so that neither dR nor the
// state's gradients go through device memory.
#pragma once

#include "ops/linear_attention/delta_sm90.cuh"

namespace weft::kernels::delta {

// Tiles of pairs of tokens with the decays between them: dP, dA, beta dA.
template <class T>
struct PairTiles {
  T dreads[kSquare], dsystem[kSquare], dsystem_beta[kSquare];
};

// K = V. A warpgroup has 64 of the state's columns while there is a system to solve, 64 channels of the gradients after.
template <class T, int K, class Shared>
struct BackwardBlock {
  static constexpr int kThreads = 2 * K, kGroups = K / 64;
  const CudaLinearAttention& p;
  const CudaLinearAttentionGradients& g;
  const Work& work;
  Shared& s;
  int h = blockIdx.x, b = blockIdx.y / work.segments, segment = blockIdx.y % work.segments;
  int begin = segment * work.segment_chunks, end = min(begin + work.segment_chunks, work.chunks);
  int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = threadIdx.x / 128;
  int column = 16 * warp;    // of the state: the warp's 16 values
  int channel = 64 * group;  // the warpgroup's channels of the gradients
  int row = warp % 4 * 16 + lane / 4, lane_column = lane % 4 * 2;  // of an accumulator's first number

  __device__ int64_t head() const { return static_cast<int64_t>(b) * p.heads + h; }
  __device__ int64_t chunk(int c) const { return head() * work.chunks + c; }
  __device__ int64_t first(int c) const { return static_cast<int64_t>(c) * kChunk; }
  // The chunk's first row of what has one for a token and head.
  __device__ int64_t head_row(int c) const { return (b * p.tokens + first(c)) * p.heads + h; }

  // Copies of rows of a chunk, of dY, and of the triangles.
  __device__ __forceinline__ void load_rows(T* to, const CudaRows& rows, int head, int c) const {
    copy_rows_in_steps<K, kThreads>(to, row_at<T>(rows, b, first(c), head), rows.token,
                                    valid_tokens(p, first(c)), threadIdx.x);
  }
  __device__ __forceinline__ void load_upstream(int c) const {
    copy_rows_in_steps<K, kThreads>(s.dy, static_cast<const T*>(g.dy) + head_row(c) * K, p.heads * K,
                                    valid_tokens(p, first(c)), threadIdx.x);
    copy_lower<kThreads>(s.solve, tile_at<T>(work.solve, chunk(c), 2 * kPairs), s.reads,
                         tile_at<T>(work.reads, chunk(c), kPairs));
  }
  __device__ __forceinline__ void load_facts(Facts<K>& to, int c) const {
    copy_block(reinterpret_cast<char*>(&to),
               reinterpret_cast<char*>(tile_at<Facts<K>>(work.facts, chunk(c), 1)), sizeof(Facts<K>));
  }
  // By one thread; the barrier's phase ends with both.
  __device__ __forceinline__ void load_states(int c) const {
    if (threadIdx.x != 0) return;
    barrier_expect(&s.barrier, 2 * K * K);
    copy_bytes(s.states, tile_at<T>(work.states, chunk(c), K * K), 2 * K * K, &s.barrier);
  }
  __device__ __forceinline__ void load_values(int c) const {
    if (threadIdx.x != 0) return;
    barrier_expect(&s.barrier, 2 * kChunk * K);
    copy_bytes(s.values, tile_at<T>(work.values, chunk(c), kChunk * K), 2 * kChunk * K, &s.barrier);
    barrier_arrive(&s.barrier);
  }
  // Brings what a chunk's copies will read into the second-level cache, long before there is room for the copies: else
  // all blocks would ask for it at once.
  __device__ __forceinline__ void prefetch_chunk(int c) const {
    if (c < begin) return;
    const int valid = valid_tokens(p, first(c));
    const int inputs = p.decay == Decay::vector ? 5 : 4;
#pragma unroll 1
    for (int n = 0; n < inputs; ++n) {
      const CudaRows& x = n == 0 ? p.v : n == 1 ? p.q : n == 2 ? p.k : p.log_decay;
      const int head = n == 1 || n == 2 ? key_head(p, h) : h,
                size = n != 3 && x.type == CudaType::fp32 ? 4 : 2;
      const int lines = K / 64 * size / 2;
      const int64_t token = (n == 3 ? p.heads * K : x.token) * size;
      const char* from = static_cast<const char*>(n == 3 ? g.dy : x.data) +
                         (n == 3 ? head_row(c) * K : b * x.batch + first(c) * x.token + head * x.head) * size;
#pragma unroll 1
      for (int i = threadIdx.x; i < valid * lines; i += kThreads)
        prefetch(from + (i / lines) * token + i % lines * 128);
    }
    if (threadIdx.x == 0) {
      prefetch_bytes(tile_at<T>(work.states, chunk(c), K * K), 2 * K * K);
      prefetch_bytes(tile_at<T>(work.values, chunk(c), kChunk * K), 2 * kChunk * K);
      prefetch_bytes(tile_at<T>(work.solve, chunk(c), 2 * kPairs), 2 * kPairs);
      prefetch_bytes(tile_at<T>(work.reads, chunk(c), kPairs), 2 * kPairs);
      prefetch_bytes(tile_at<Facts<K>>(work.facts, chunk(c), 1), sizeof(Facts<K>));
    }
  }
  // The barrier, and zeros above the diagonal's blocks, once.
  __device__ __forceinline__ void set_up() const {
    if (threadIdx.x == 0) {
      barrier_init(&s.barrier, 1);
      barrier_init_fence();
    }
    for (int i = threadIdx.x; i < kSquare / 8; i += kThreads)
      reinterpret_cast<uint4*>(s.solve)[i] = reinterpret_cast<uint4*>(s.reads)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
  }
  // The gradient of the state after the last chunk, and where that before the first goes.
  __device__ __forceinline__ void load_gradient(float (&ds)[K / 8][4]) const {
    const float* after = g.dstate ? g.dstate + head() * K * K : nullptr;
    if (work.segments > 1) after = work.dedges + (head() * work.segments + segment) * K * K;
    load_state<K>(ds, after, K, column);
  }
  __device__ __forceinline__ void store_gradient(const float (&ds)[K / 8][4]) const {
    if (g.dinitial && segment == 0) store_state<K>(ds, g.dinitial + head() * K * K, K, column);
  }

  // dR = T' (P' dY + keep K_out dS) from K_out dS, to shared memory; the left operands of what the chunk adds to the
  // state's gradient: read dY' and -erase dR'.
  __device__ __forceinline__ void solve(float (&source)[8][4], const Facts<K>& facts, uint32_t (&read)[4][4],
                                        uint32_t (&erase)[4][4]) {
    scale_columns<kChunk>(source, facts.keep);
    uint32_t a[4][4];
#pragma unroll
    for (int r = 0; r < 4; ++r) left_transposed<kSpreadRows>(a[r], s.dy, 16 * r, column);
    pin_columns<kChunk>(source);
    products_begin();
    multiply(source, a, s.reads);
    products_commit();
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 x = unpack<T>(a[r][i]);
        const float2 by = *reinterpret_cast<const float2*>(facts.read + 16 * r + i / 2 * 8 + lane_column);
        read[r][i] = pack<T>(x.x * by.x, x.y * by.y);
      }
    products_wait<0>();
    pin_columns<kChunk>(source);
    pack_tokens<T>(a, source);
    float solved[8][4] = {};
    pin_columns<kChunk>(solved);
    products_begin();
    multiply(solved, a, s.solve);
    products_commit();
    products_wait<0>();
    pin_columns<kChunk>(solved);
    pack_tokens<T>(erase, solved);
    store_transposed(erase, s.sources, column);
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) solved[j][i] = -solved[j][i];
    scale_columns<kChunk>(solved, facts.erase);
    pack_tokens<T>(erase, solved);
  }

  // Rows of a times the values N': pairs of tokens.
  __device__ __forceinline__ void multiply_values(float (&pairs)[32], bool sources) {
#pragma unroll
    for (int v = 0; v < K; v += 16)
      multiply_shared<T, false, false>(pairs,
                                       sources ? deep<kChunk>(s.sources, v) : deep<kSpreadRows>(s.dy, v),
                                       deep<kChunk>(s.values, v), v > 0);
  }
  // dY S', dR S', N dS' at the warpgroup's channels.
  __device__ __forceinline__ void multiply_states(float (&dq)[32], float (&erased)[32], float (&dk)[32]) {
#pragma unroll
    for (int v = 0; v < K; v += 16)
      multiply_shared<T, false, true>(dq, deep<kSpreadRows>(s.dy, v), wide<K>(s.states, v, channel), v > 0);
#pragma unroll
    for (int v = 0; v < K; v += 16)
      multiply_shared<T, false, true>(erased, deep<kChunk>(s.sources, v), wide<K>(s.states, v, channel),
                                      v > 0);
#pragma unroll
    for (int v = 0; v < K; v += 16)
      multiply_shared<T, false, true>(dk, deep<kChunk>(s.values, v), wide<K>(s.dstates, v, channel), v > 0);
  }
  // dV = write dR, dwrite = dR . V; v(t, at) is a piece of 8 values of V.
  template <class Values>
  __device__ __forceinline__ void store_values(int c, const float* write, const Values& values) {
    if (!g.dv && !g.dwrite) return;
    constexpr int kEach = kChunk * K / 8 / kThreads;
    const int valid = valid_tokens(p, first(c)), at = threadIdx.x % (K / 8);
    uint4 next = values(threadIdx.x / (K / 8), at);
#pragma unroll
    for (int n = 0; n < kEach; ++n) {
      const int t = (threadIdx.x + n * kThreads) / (K / 8);
      uint4 x = *reinterpret_cast<const uint4*>(piece<kChunk>(s.sources, t, at));
      const uint4 v = next;
      if (n + 1 < kEach) next = values(t + kThreads / (K / 8), at);
      auto* xs = reinterpret_cast<uint32_t*>(&x);
      const uint32_t vs[4] = {v.x, v.y, v.z, v.w};
      float sum = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float2 u = unpack<T>(xs[j]), w = unpack<T>(vs[j]);
        sum += u.x * w.x + u.y * w.y;
        xs[j] = pack<T>(write[t] * u.x, write[t] * u.y);
      }
      sum = warp_sum<K / 8>(sum);
      if (t >= valid) continue;
      const int64_t to = head_row(c) + t * p.heads;
      if (g.dv) *reinterpret_cast<uint4*>(static_cast<T*>(g.dv) + to * K + at * 8) = x;
      if (g.dwrite && at == 0) g.dwrite[to] = sum;
    }
  }
  // Products of pairs with the decays between their tokens, dP and dA.
  __device__ __forceinline__ void store_pairs(const float (&pairs)[32], const Tokens& tokens, bool system) {
    if (system)
      store_pairs<true>(pairs, tokens);
    else
      store_pairs<false>(pairs, tokens);
  }
  template <bool kSystem>
  __device__ __forceinline__ void store_pairs(const float (&pairs)[32], const Tokens& tokens) {
    float decay[2], beta[2];
    int document[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = row + 8 * i;
      decay[i] = tokens.decay[r], document[i] = tokens.document[r], beta[i] = tokens.beta[r];
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int t = 8 * j + lane_column;
      const float2 from = *reinterpret_cast<const float2*>(tokens.decay + t);
      const int2 of = *reinterpret_cast<const int2*>(tokens.document + t);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int r = row + 8 * i - (kSystem ? 1 : 0);  // the last token that counts
        const float x =
            t <= r && of.x == document[i] ? fast_exp2(decay[i] - from.x) * pairs[4 * j + 2 * i] : 0.f;
        const float y =
            t < r && of.y == document[i] ? fast_exp2(decay[i] - from.y) * pairs[4 * j + 2 * i + 1] : 0.f;
        const auto put = [&](T* tile, float by) {
          *reinterpret_cast<uint32_t*>(piece<kChunk>(tile, row + 8 * i, j) + lane_column) =
              pack<T>(by * x, by * y);
        };
        if constexpr (kSystem)
          put(s.pairs.dsystem, -1.f), put(s.pairs.dsystem_beta, -beta[i]);
        else
          put(s.pairs.dreads, p.scale);
      }
    }
  }
  __device__ __forceinline__ float2 pair_of(const T* tile, int t, int j) const {
    return unpack<T>(
        *reinterpret_cast<const uint32_t*>(piece<kSpreadRows>(tile, t, channel / 8 + j) + lane_column));
  }
  // The rows' sums of `x`, spread over 4 lanes each.
  __device__ __forceinline__ void store_row_sums(float* to, const float (&x)[2]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float sum = warp_sum<4>(x[i]);
      if (lane % 4 == 0) to[row + 8 * i] = sum;
    }
  }
  // A pair of dq or dk to the place of q or k, or in fp32 to device memory.
  template <bool kGroup>
  __device__ __forceinline__ void put_pair(void* rows, T* tile, int c, int t, int j, float x, float y) const {
    if constexpr (!kGroup)
      *reinterpret_cast<uint32_t*>(piece<kSpreadRows>(tile, t, channel / 8 + j) + lane_column) =
          pack<T>(x, y);
    else if (rows && t < valid_tokens(p, first(c)))
      *reinterpret_cast<float2*>(static_cast<float*>(rows) + (head_row(c) + t * p.heads) * K + channel +
                                 8 * j + lane_column) = make_float2(x, y);
  }
  // A thread reads the pieces of the queries' places that it copies.
  __device__ __forceinline__ void store_keys(int c, const T* keys) {
    if (g.group_fp32) return;
    constexpr int kStep = kThreads / (K / 8);
    const int row = threadIdx.x / (K / 8), at = threadIdx.x % (K / 8);
    const int valid = valid_tokens(p, first(c));
    const int64_t to = (head_row(c) + row * p.heads) * K + at * 8;
    const auto store = [&](void* gradient, const T* tile) {
      if (!gradient) return;
#pragma unroll
      for (int n = 0; n < kChunk / kStep; ++n)
        if (row + n * kStep < valid)
          *reinterpret_cast<uint4*>(static_cast<T*>(gradient) + to + n * kStep * p.heads * K) =
              *reinterpret_cast<const uint4*>(piece<kSpreadRows>(tile, row + n * kStep, at));
    };
    store(g.dq, s.queries), store(g.dk, keys);
  }
};

}  // namespace weft::kernels::delta
