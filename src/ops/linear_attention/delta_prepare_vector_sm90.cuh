// Delta rule on Hopper with a vector decay: the rows and columns of a chunk with their decays, and the products of its pairs
// of tokens, by one warpgroup.
#pragma once

#include "ops/linear_attention/delta_sm90.cuh"
#include "ops/linear_attention/delta_vector.cuh"
#include "ops/linear_attention/triangular.cuh"

namespace weft::kernels::delta {

// Operands of one tile: the low half of the first one's descriptor, from which the others are a constant away.
template <int kRows>
struct DeepTile {
  uint32_t low;
  template <class T>
  __device__ explicit DeepTile(const T* tile) : low(kRows << 16 | (shared_address(tile) & 0x3FFFF) >> 4) {}
  __device__ uint64_t at(int column) const {
    return static_cast<uint64_t>(8) << 32 | (low + column / 8 * kRows);
  }
};
template <int kRows>
struct WideTile {
  uint32_t low;
  template <class T>
  __device__ explicit WideTile(const T* tile) : low(8 << 16 | (shared_address(tile) & 0x3FFFF) >> 4) {}
  __device__ uint64_t at(int row, int column) const {
    return static_cast<uint64_t>(kRows) << 32 | (low + column / 8 * kRows + row);
  }
};

// The warpgroup that makes pairs; a warp has the 16 tokens of a block, a lane two channels of 64 at a time. Shared has
// Rows: tiles keys and queries, first without their decays, and columns; and totals, log2 decays of blocks of tokens.
template <int K, class Shared, class Number>
struct ChunkPairs {
  using T = bf16;
  using Packed = std::conditional_t<std::is_same_v<Number, float>, float2, uint32_t>;
  static constexpr int kThreads = 128;
  const CudaLinearAttention& p;
  const Work& work;
  Shared& s;
  int h = blockIdx.y, b = blockIdx.z, kh = key_head(p, h);
  int block = threadIdx.x / 32 % kBlocks, lane = threadIdx.x % 32, thread = threadIdx.x % kThreads;

  __device__ static void synchronise() { named_barrier(1, kThreads); }
  __device__ static float2 numbers(float2 x) { return x; }
  __device__ static float2 numbers(uint32_t x) { return unpack<bf16>(x); }
  __device__ static float2 bounded(float2 x) { return {bounded_log2(x.x), bounded_log2(x.y)}; }

  // Token n of the warp's block, the lane's channels of half `half`.
  template <class X, class Y>
  __device__ __forceinline__ Y load_pair(const CudaRows& rows, int head, int c, int half, int n,
                                         Y none) const {
    const int64_t t = static_cast<int64_t>(c) * kChunk + kBlock * block + n;
    return t < p.tokens ? *reinterpret_cast<const Y*>(row_at<X>(rows, b, t, head) + 64 * half + 2 * lane)
                        : none;
  }
  __device__ __forceinline__ void load_decays(Packed (&raw)[kBlock], int c, int half) const {
    const int64_t first = static_cast<int64_t>(c) * kChunk + kBlock * block;
    const int valid = static_cast<int>(min(p.tokens - first, static_cast<int64_t>(kBlock)));
    const Number* from = row_at<Number>(p.log_decay, b, first, h) + 64 * half + 2 * lane;
#pragma unroll
    for (int n = 0; n < kBlock; ++n, from += p.log_decay.token)
      raw[n] = n < valid ? *reinterpret_cast<const Packed*>(from) : Packed{};
  }
  // Where the lane's channels of the block's first token lie in a tile; tokens are 8 numbers apart.
  __device__ __forceinline__ uint32_t* place(T* tile, int half) const {
    return reinterpret_cast<uint32_t*>(piece<kSpreadRows>(tile, kBlock * block, 8 * half + lane / 4) +
                                       lane % 4 * 2);
  }

  // Rows and columns of a chunk with their decays from its middle on. Whether they are exact, for all channels. `raw`: the first
  // half's log decays, then those of chunk `next`; `sums` is the system's place. Rolled: straight code is fetched more slowly
  // than it runs.
  __device__ __forceinline__ bool decay_rows(typename Shared::Rows& rows, Facts<K>& facts, float* before,
                                             float* sums, Packed (&raw)[kBlock], int c, int next) const {
    constexpr float kMost = 120;
    bool gentle = true;
    auto* own = reinterpret_cast<float2*>(sums + kBlock * block * kTriangularStride) + lane;
    constexpr int kStep = kTriangularStride / 2;
#pragma unroll 1
    for (int half = 0; half < K / 64; ++half) {
      const int channel = 64 * half + 2 * lane;
      float2 sum = {0, 0};
#pragma unroll
      for (int n = 0; n < kBlock; ++n) {
        const float2 x = bounded(numbers(raw[n]));
        own[n * kStep] = sum = {sum.x + x.x, sum.y + x.y};
      }
      *reinterpret_cast<float2*>(s.totals[block] + channel) = sum;
      const bool last = half + 1 == K / 64;
      load_decays(raw, last ? next : c, last ? 0 : half + 1);
      synchronise();
      float2 start = {0, 0}, total = {0, 0};
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        const float2 x = *reinterpret_cast<const float2*>(s.totals[i] + channel);
        if (i < block) start = {start.x + x.x, start.y + x.y};
        total = {total.x + x.x, total.y + x.y};
      }
      gentle = gentle && fminf(total.x, total.y) > -kMost;
      start = {start.x - 0.5f * total.x, start.y - 0.5f * total.y};
      if (block == 0) {
        const float2 by = {fast_exp2(0.5f * total.x), fast_exp2(0.5f * total.y)};
        *reinterpret_cast<float2*>(before + channel) = by;
        *reinterpret_cast<float2*>(facts.through + channel) = by;
      }
      uint32_t *queries = place(rows.queries, half), *keys = place(rows.keys, half),
               *columns = place(rows.columns, half);
#pragma unroll 4
      for (int n = 0; n < kBlock; ++n) {
        const float2 e = {own[n * kStep].x + start.x, own[n * kStep].y + start.y};
        const float2 by = {fast_exp2(e.x), fast_exp2(e.y)}, back = {fast_exp2(-e.x), fast_exp2(-e.y)};
        const float2 q = unpack<T>(queries[4 * n]), k = unpack<T>(keys[4 * n]);
        queries[4 * n] = pack<T>(q.x * by.x, q.y * by.y);
        keys[4 * n] = pack<T>(k.x * by.x, k.y * by.y);
        columns[4 * n] = pack<T>(k.x * back.x, k.y * back.y);
      }
    }
    return __all_sync(0xffffffff, gentle);
  }

  // Of the tokens' pairs whose products are in `x`, body(r, t, n, whether (r, t) and (r, t + 1) see each other).
  template <class Body>
  __device__ __forceinline__ void for_pairs(const Tokens& tokens, const Body& body) const {
    const int row = 16 * block + lane / 4;
    const int document[2] = {tokens.document[row], tokens.document[row + 8]};
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      if (j / 2 > block) continue;
      const int t = 8 * j + lane % 4 * 2;
      const int2 of = *reinterpret_cast<const int2*>(tokens.document + t);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        body(row + 8 * i, t, 4 * j + 2 * i, of.x == document[i], of.y == document[i]);
    }
  }
  // P to its tile and to device memory, either may be null.
  __device__ __forceinline__ void store_reads(const float (&x)[32], const Tokens& tokens, T* tile,
                                              T* kept) const {
    for_pairs(tokens, [&](int r, int t, int n, bool one, bool other) {
      const uint32_t read =
          pack<T>(one && t <= r ? p.scale * x[n] : 0.f, other && t < r ? p.scale * x[n + 1] : 0.f);
      if (tile) *reinterpret_cast<uint32_t*>(piece<kChunk>(tile, r, t / 8) + t % 8) = read;
      if (kept)
        *reinterpret_cast<uint32_t*>(piece<16>(lower_block(kept, block, t / 16), r % 16, t / 8 % 2) + t % 8) =
            read;
    });
  }
  __device__ __forceinline__ void store_system(const float (&x)[32], const Tokens& tokens,
                                               float* system) const {
    for_pairs(tokens, [&](int r, int t, int n, bool one, bool other) {
      const float beta = tokens.beta[r];
      *reinterpret_cast<float2*>(system + r * kTriangularStride + t) =
          make_float2(one && t < r ? beta * x[n] : 0.f, other && t + 1 < r ? beta * x[n + 1] : 0.f);
    });
  }
  __device__ __forceinline__ void store_factors(Facts<K>& facts) const {
    const Tokens& tokens = facts.tokens;
    if (const int t = thread; t < kChunk) {
      facts.read[t] = p.scale * tokens.from_before(t);
      facts.keep[t] = tokens.to_after(t);
      facts.erase[t] = tokens.beta[t] * tokens.from_before(t);
    }
  }

  // Pairs of a gentle chunk, in the tiles' rows and columns; all but the reads' tile stay in the warp's rows.
  __device__ __forceinline__ void make_pairs(typename Shared::Rows& rows, Facts<K>& facts, float* system,
                                             T* reads, T* kept) const {
    async_fence();
    synchronise();
    const DeepTile<kSpreadRows> columns(rows.columns);
    const auto multiply = [&](float(&x)[32], const T* tile) {
      const DeepTile<kSpreadRows> a(tile);
      products_begin();
#pragma unroll
      for (int d = 0; d < K; d += 16) multiply_shared<T, false, false>(x, a.at(d), columns.at(d), d > 0);
      products_commit();
    };
    float x[32];
    multiply(x, rows.keys);
    store_factors(facts);
    products_wait<0>();
    pin(x);
    store_system(x, facts.tokens, system);
    multiply(x, rows.queries);
    products_wait<0>();
    pin(x);
    store_reads(x, facts.tokens, reads, kept);
  }

  // The rest is of chunks that decay too much, and starts from what lies in device memory.

  // Rows have the decay from the start of their block on, columns that to its end; or `whole`: of the chunk.
  __device__ __forceinline__ void decay_blocks(typename Shared::Rows& rows, int c, bool whole) const {
#pragma unroll 1
    for (int half = 0; half < K / 64; ++half) {
      const int channel = 64 * half + 2 * lane;
      float2 sum = {0, 0}, total = *reinterpret_cast<const float2*>(s.totals[block] + channel);
      if (whole) {
        total = {0, 0};
        for (int i = 0; i < kBlocks; ++i) {
          const float2 x = *reinterpret_cast<const float2*>(s.totals[i] + channel);
          if (i < block) sum = {sum.x + x.x, sum.y + x.y};
          total = {total.x + x.x, total.y + x.y};
        }
      }
      uint32_t *queries = place(rows.queries, half), *keys = place(rows.keys, half),
               *columns = place(rows.columns, half);
#pragma unroll 1
      for (int n = 0; n < kBlock; ++n) {
        const float2 x = bounded(numbers(load_pair<Number>(p.log_decay, h, c, half, n, Packed{})));
        const float2 q = unpack<T>(load_pair<T>(p.q, kh, c, half, n, uint32_t{})),
                     k = unpack<T>(load_pair<T>(p.k, kh, c, half, n, uint32_t{}));
        sum = {sum.x + x.x, sum.y + x.y};
        const float2 by = {fast_exp2(sum.x), fast_exp2(sum.y)};
        queries[4 * n] = pack<T>(q.x * by.x, q.y * by.y);
        keys[4 * n] = pack<T>(k.x * by.x, k.y * by.y);
        columns[4 * n] = pack<T>(k.x * fast_exp2(total.x - sum.x), k.y * fast_exp2(total.y - sum.y));
      }
    }
  }
  // The products of rows of x with keys within the warp's block, pair by pair; the system's place holds sums of decays.
  __device__ __forceinline__ void multiply_pairs(float (&pairs)[8], const CudaRows& x, float* sums,
                                                 int c) const {
    const int64_t first = static_cast<int64_t>(c) * kChunk;
#pragma unroll
    for (int n = 0; n < 8; ++n) pairs[n] = 0;
#pragma unroll 1
    for (int half = 0; half < K / 64; ++half) {
      float2 sum = {0, 0};
#pragma unroll 1
      for (int n = 0; n < kBlock; ++n) {
        const float2 g = bounded(numbers(load_pair<Number>(p.log_decay, h, c, half, n, Packed{})));
        sum = {sum.x + g.x, sum.y + g.y};
        *reinterpret_cast<float2*>(sums + (kBlock * block + n) * kTriangularStride + 2 * lane) = sum;
      }
      __syncwarp();
#pragma unroll
      for (int n = 0; n < 8; ++n) {
        const int r = kBlock * block + lane / 4 + n / 2 % 2 * 8,
                  t = kBlock * block + n / 4 * 8 + lane % 4 * 2 + n % 2;
        if (t > r || first + r >= p.tokens) continue;
        const T *row = row_at<T>(x, b, first + r, kh) + 64 * half,
                *key = row_at<T>(p.k, b, first + t, kh) + 64 * half;
#pragma unroll 1
        for (int d = 0; d < 64; ++d)
          pairs[n] += to_float(row[d]) * to_float(key[d]) *
                      fast_exp2(sums[r * kTriangularStride + d] - sums[t * kTriangularStride + d]);
      }
      __syncwarp();
    }
  }
  // The products of 16 rows with columns, from block to block.
  __device__ __forceinline__ void multiply_blocks(float (&c)[8][4], const T* rows, const T* columns) const {
#pragma unroll
    for (int j = 0; j < 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) c[j][i] = 0;
#pragma unroll 1
    for (int d = 0; d < K; d += 16) {
      uint32_t a[4];
      left<kSpreadRows>(a, rows, kBlock * block, d);
      float2 sum[2] = {};  // of what lies between a block and this one
#pragma unroll
      for (int i = kBlocks - 1; i >= 0; --i) {
        if (i > block) continue;
        uint32_t x[4];
        right_transposed<kSpreadRows>(x, columns, kBlock * i, d);
        float2 total[2];
#pragma unroll
        for (int n = 0; n < 2; ++n)
          total[n] = *reinterpret_cast<const float2*>(s.totals[i] + d + 8 * n + lane % 4 * 2);
#pragma unroll
        for (int n = 0; n < 4; ++n) {
          const float2 e = i == block ? make_float2(-total[n % 2].x, -total[n % 2].y) : sum[n % 2],
                       y = unpack<T>(x[n]);
          x[n] = pack<T>(y.x * fast_exp2(e.x), y.y * fast_exp2(e.y));
        }
        if (i < block)
#pragma unroll
          for (int n = 0; n < 2; ++n) sum[n] = {sum[n].x + total[n].x, sum[n].y + total[n].y};
        multiply_add_pair<T>(c[2 * i], c[2 * i + 1], a, x);
      }
    }
  }
  // Pairs, then rows and columns that meet states at the chunk's start and end.
  __device__ __forceinline__ void make_strong_pairs(int c, typename Shared::Rows& rows, Facts<K>& facts,
                                                    float* before, float* system, T* reads, T* kept) const {
    decay_blocks(rows, c, false);
    if (block == 0)
      for (int d = lane; d < K; d += 32) {
        before[d] = 1;
        facts.through[d] = fast_exp2(s.totals[0][d] + s.totals[1][d] + s.totals[2][d] + s.totals[3][d]);
      }
    store_factors(facts);
    __syncwarp();
    float least = 0;
    for (int d = lane; d < K; d += 32) least = fminf(least, s.totals[block][d]);
    const bool apart = __any_sync(0xffffffff, least < -kMostRange);
    synchronise();
#pragma unroll 1
    for (int n = 0; n < 2; ++n) {
      float x[8][4], own[8];
      multiply_blocks(x, n == 0 ? rows.queries : rows.keys, rows.columns);
      if (apart) {
        multiply_pairs(own, n == 0 ? p.q : p.k, system, c);
#pragma unroll
        for (int r = 0; r < kBlocks; ++r)
          if (r == block)
#pragma unroll
            for (int i = 0; i < 8; ++i) x[2 * r + i / 4][i % 4] = own[i];
      }
      synchronise();
      if (n == 0)
        store_reads(flat(x[0]), facts.tokens, reads, kept);
      else
        store_system(flat(x[0]), facts.tokens, system);
    }
    decay_blocks(rows, c, true);
  }
};

}  // namespace weft::kernels::delta
