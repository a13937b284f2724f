// Delta rule: what the gradients of the inputs share, with and without vector decay. A block has 64 channels of one chunk
// of a head and walks over the values, 64 at a time.
#pragma once

#include "ops/linear_attention/delta.cuh"

namespace weft::kernels::delta {

constexpr int kThreads = 256, kSlice = 64;  // channels of a block, and values at a time
constexpr int kTile = kChunk * kSlice, kSpreadTile = kSpreadRows * kSlice;

// 64 values and the block's channels of the states: dY, N, dR, S' before the chunk, its gradient after the chunk.
template <class T>
struct Slice {
  T dy[kSpreadTile], dr[kSpreadTile];
  T values[kTile], states[kTile], dstates[kTile];
};

// What a block works on.
struct Chunk {
  const CudaLinearAttention& p;
  const CudaLinearAttentionGradients& g;
  const Work& work;
  int K = static_cast<int>(p.key_width), V = static_cast<int>(p.value_width), slices = K / kSlice;
  int slice = blockIdx.x % slices, d = slice * kSlice, c = blockIdx.x / slices, h = blockIdx.y,
      b = blockIdx.z;
  int64_t first = static_cast<int64_t>(c) * kChunk, chunk = work.chunk(p, b, h, c);
  int64_t head_row = (b * p.tokens + first) * p.heads + h;  // in what has a row for a token and head
  int valid = valid_tokens(p, first);
};

// Starts to copy the values from `column` on.
template <class T>
__device__ __forceinline__ void load_slice(Slice<T>& to, const Chunk& at, int column) {
  copy_rows(to.dy, static_cast<const T*>(at.g.dy) + at.head_row * at.V + column, at.p.heads * at.V, at.valid,
            kSlice);
  copy_tile(to.dr, tile_at<T>(at.work.sources, at.chunk, kChunk * at.V) + column * kChunk, kSlice);
  copy_block(to.values, tile_at<T>(at.work.values, at.chunk, kChunk * at.V) + column * kChunk, kTile);
  const T* states = tile_at<T>(at.work.states, at.chunk, static_cast<int64_t>(at.K) * at.V);
  const T* dstates = tile_at<T>(at.work.dstates, at.chunk, static_cast<int64_t>(at.K) * at.V);
  for (int i = threadIdx.x; i < kTile / 8; i += kThreads) {
    const int64_t from = (static_cast<int64_t>(at.d / 8 + i / kSlice) * at.V + column + i % kSlice) * 8;
    copy_async16(to.states + i * 8, states + from);
    copy_async16(to.dstates + i * 8, dstates + from);
  }
}
template <class T>
__device__ __forceinline__ void load_keys(T* q, T* k, const Chunk& at) {
  const int kh = key_head(at.p, at.h);
  copy_rows(q, row_at<T>(at.p.q, at.b, at.first, kh) + at.d, at.p.q.token, at.valid, kSlice);
  copy_rows(k, row_at<T>(at.p.k, at.b, at.first, kh) + at.d, at.p.k.token, at.valid, kSlice);
}

// A pair of numbers of a tile, at the columns that a lane has of an accumulator.
template <int kRows, class T>
__device__ __forceinline__ float2 pair_of(const T* tile, int row, int column) {
  return unpack<T>(*reinterpret_cast<const uint32_t*>(piece<kRows>(tile, row, column / 8) + column % 8));
}
template <int kRows, class T>
__device__ __forceinline__ void put_pair(T* tile, int row, int column, float x, float y) {
  *reinterpret_cast<uint32_t*>(piece<kRows>(tile, row, column / 8) + column % 8) = pack<T>(x, y);
}

// What a warp of the block has: 16 tokens, 32 columns.
struct Place {
  int row = threadIdx.x / 32 % 4 * 16, half = threadIdx.x / 128, column = half * 32;
  int lane_row = row + threadIdx.x % 32 / 4,
      lane_column = column + threadIdx.x % 4 * 2;  // of an accumulator's first number
};
using Part = float[4][4];  // accumulators [16, 32]

// c += a b for the left operand a of 16 columns and rows [row, row + 16) of `b` at the warp's columns.
template <int kRows, class T>
__device__ __forceinline__ void add_product(Part& c, const uint32_t (&a)[4], const T* tile, int row,
                                            int column) {
  uint32_t b[4];
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    right<kRows>(b, tile, row, column + 16 * j);
    multiply_add_pair<T>(c[2 * j], c[2 * j + 1], a, b);
  }
}

// What the products over the values leave; the states are those before, their gradients those after the chunk.
struct Products {
  Part dq = {};                    // dY S'
  Part erased = {};                // dR S'
  Part dk = {};                    // N dS'
  Part dreads = {}, dsystem = {};  // dY N', dR N'
};

template <class T>
__device__ __forceinline__ void multiply_slice(Products& to, const Slice<T>& s, const Place& at) {
#pragma unroll
  for (int v = 0; v < kSlice; v += 16) {
    uint32_t dy[4], dr[4], a[4], x[4];
    left<kSpreadRows>(dy, s.dy, at.row, v);
    left<kSpreadRows>(dr, s.dr, at.row, v);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      right<kChunk>(x, s.states, v, at.column + 16 * j);
      multiply_add_pair<T>(to.dq[2 * j], to.dq[2 * j + 1], dy, x);
      multiply_add_pair<T>(to.erased[2 * j], to.erased[2 * j + 1], dr, x);
    }
    left<kChunk>(a, s.values, at.row, v);
    add_product<kChunk>(to.dk, a, s.dstates, v, at.column);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      right_transposed<kChunk>(x, s.values, at.column + 16 * j, v);
      multiply_add_pair<T>(to.dreads[2 * j], to.dreads[2 * j + 1], dy, x);
      multiply_add_pair<T>(to.dsystem[2 * j], to.dsystem[2 * j + 1], dr, x);
    }
  }
}

// dV = write dR, 8 columns of two tokens a thread; adds dR . V to the tokens' sums.
template <class T>
__device__ __forceinline__ void store_values(float (&dwrite)[2], const T* dr, const float* write,
                                             const uint4 (&v)[2], const Chunk& at, int column) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int t = threadIdx.x / 8 + 32 * n, group = threadIdx.x % 8;
    uint4 x = *reinterpret_cast<const uint4*>(piece<kSpreadRows>(dr, t, group));
    auto* xs = reinterpret_cast<uint32_t*>(&x);
    const auto* vs = reinterpret_cast<const uint32_t*>(&v[n]);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 a = unpack<T>(xs[i]), b = unpack<T>(vs[i]);
      dwrite[n] += a.x * b.x + a.y * b.y;
      xs[i] = pack<T>(write[t] * a.x, write[t] * a.y);
    }
    if (at.g.dv && t < at.valid)
      *reinterpret_cast<uint4*>(static_cast<T*>(at.g.dv) + (at.head_row + t * at.p.heads) * at.V + column +
                                group * 8) = x;
  }
}
template <class T>
__device__ __forceinline__ void load_values(uint4 (&v)[2], const Chunk& at, int column) {
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int t = threadIdx.x / 8 + 32 * n;
    v[n] = make_uint4(0, 0, 0, 0);
    if (t < at.valid)
      v[n] = *reinterpret_cast<const uint4*>(row_at<T>(at.p.v, at.b, at.first + t, at.h) + column +
                                             threadIdx.x % 8 * 8);
  }
}

// Walks over the values; the first kBuffers slices are on their way, each with a group of copies of its own. The block of
// the first channels also has dV and dwrite. visit() sees every slice.
template <int kBuffers, class T, class Visit>
__device__ __forceinline__ void multiply_values(Slice<T> (&slices)[kBuffers], Products& to,
                                                const Tokens& tokens, const Chunk& at, const Visit& visit) {
  const Place place;
  float dwrite[2] = {};
  for (int n = 0; n < at.V / kSlice; ++n) {
    uint4 v[2];
    if (at.slice == 0) load_values<T>(v, at, n * kSlice);
    copy_async_wait<kBuffers - 1>();
    __syncthreads();
    Slice<T>& s = slices[n % kBuffers];
    if (at.slice == 0) store_values(dwrite, s.dr, tokens.write, v, at, n * kSlice);
    visit(s);
    multiply_slice(to, s, place);
    __syncthreads();
    if (const int next = (n + kBuffers) * kSlice; next < at.V) load_slice(s, at, next);
    copy_async_commit();
  }
  if (at.slice != 0 || !at.g.dwrite) return;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int t = threadIdx.x / 8 + 32 * n;
    const float sum = warp_sum<8>(dwrite[n]);
    if (threadIdx.x % 8 == 0 && t < at.valid) at.g.dwrite[at.head_row + t * at.p.heads] = sum;
  }
}

// Tiles of pairs of tokens, where a slice has been: dP, dA, beta dA with the decays of their pairs.
template <class Operand>
struct Pairs {
  Operand dreads[kTile], dsystem[kTile], dsystem_beta[kTile];
};
template <class Operand>
__device__ __forceinline__ void store_pairs(Pairs<Operand>& to, const Products& x, const Tokens& tokens,
                                            const Place& at, float scale) {
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int r = at.lane_row + 8 * i, t = at.lane_column + 8 * j;
      const float a = tokens.between(t, r), b = tokens.between(t + 1, r), beta = tokens.beta[r];
      put_pair<kChunk>(to.dreads, r, t, scale * a * x.dreads[j][2 * i], scale * b * x.dreads[j][2 * i + 1]);
      const float first = t < r ? -a * x.dsystem[j][2 * i] : 0.f,
                  last = t + 1 < r ? -b * x.dsystem[j][2 * i + 1] : 0.f;
      put_pair<kChunk>(to.dsystem, r, t, first, last);
      put_pair<kChunk>(to.dsystem_beta, r, t, beta * first, beta * last);
    }
}

// The rows' sums of `x`, spread over 4 lanes each.
__device__ __forceinline__ void store_row_sums(float* to, const Place& at, const float (&x)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float sum = warp_sum<4>(x[i]);
    if (threadIdx.x % 4 == 0) to[at.lane_row + 8 * i] = sum;
  }
}

// A pair of dq or dk: in fp32 to device memory, else in the place of q or k in shared memory, for store_tile.
template <class T>
__device__ __forceinline__ void store_key_pair(void* rows, T* tile, const Chunk& at, int t, int column,
                                               float x, float y) {
  if (!at.g.group_fp32)
    put_pair<kSpreadRows>(tile, t, column, x, y);
  else if (rows && t < at.valid)
    *reinterpret_cast<float2*>(static_cast<float*>(rows) + (at.head_row + t * at.p.heads) * at.K + at.d +
                               column) = make_float2(x, y);
}
template <class T>
__device__ __forceinline__ void store_tile(void* rows, const T* tile, const Chunk& at) {
  if (at.g.group_fp32 || !rows) return;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int t = threadIdx.x / 8 + 32 * n, group = threadIdx.x % 8;
    if (t < at.valid)
      *reinterpret_cast<uint4*>(static_cast<T*>(rows) + (at.head_row + t * at.p.heads) * at.K + at.d +
                                group * 8) =
          *reinterpret_cast<const uint4*>(piece<kSpreadRows>(tile, t, group));
  }
}

// Where the block's sums over its channels go for a gradient with one number a token; `index` in Work::partial.
__device__ __forceinline__ float* token_gradient(float* whole, const Chunk& at, int index) {
  if (!whole) return nullptr;
  const int64_t count = at.p.batch * at.p.tokens * at.p.heads;
  return (at.work.partial ? at.work.partial + (2 * at.slice + index) * count : whole) + at.head_row;
}

}  // namespace weft::kernels::delta
