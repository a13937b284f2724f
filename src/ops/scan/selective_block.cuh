// What a block of the backward pass of selective_scan works on, and its sums over channels. Four lanes share kWidth
// channels, each with kStates states of them; neighbouring lanes have neighbouring channels.
#pragma once

#include "ops/scan/selective.cuh"

namespace weft::kernels::chunked {

constexpr int kLanes = 4, kChunk = kCudaSelectiveChunk;

// Type of u, channels and states of a thread, tokens of a group, threads of a block, blocks of a multiprocessor.
template <class Type, int kChannelsOfThread, int kStatesOfThread, int kTokens, int kBlock, int kResident>
struct Shape {
  using T = Type;
  static constexpr int kWidth = kChannelsOfThread, kStates = kStatesOfThread, kGroup = kTokens,
                       kThreads = kBlock, kBlocks = kResident;
  static constexpr int kWarps = kThreads / 32, kChannels = kThreads / kLanes * kWidth,
                       kRow = kLanes * kStates, kGroups = kChunk / kGroup;
  static constexpr int kValues = 2 * kRow;                        // sums over channels for one token
  static constexpr bool kTensor = sizeof(T) == 2 && kGroup == 8;  // which tensor cores take, in tf32
  static constexpr int kParts = kTensor ? 2 * kWarps : kWarps;
};

// Rows of the chunk: delta and then its gradient, delta u and then the gradient of u, dy.
enum Row { kDelta, kInput, kUp };

template <class S>
struct Tile {
  typename S::T raw[2][3][kChunk][S::kChannels];  // delta, u, dy as they are, of two chunks
  float rows[3][kChunk][S::kChannels];
  float maps[kChunk][2][S::kRow];  // b, c
  float before[S::kGroups][S::kWidth * S::kStates / 4][S::kThreads][4];
  float parts[S::kParts][kChunk][S::kValues + 4];  // [lane of four][b, c][state] of each warp, or half of it
  float sums[S::kTensor ? 1 : S::kWarps][8][S::kValues + 4];
};

// Of four numbers, lane l gets the sum of number l / 8 over the lanes l % 8 + 8 i.
__device__ __forceinline__ float fold(float (&x)[4]) {
#pragma unroll
  for (int half = 2; half > 0; half /= 2) {
    const bool upper = threadIdx.x & (8 * half);
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float kept = upper ? x[i + half] : x[i], sent = upper ? x[i] : x[i + half];
      x[i] = kept + __shfl_xor_sync(0xffffffff, sent, 8 * half);
    }
  }
  return x[0];
}

// c[16x8] += a[16x8] b[8x8] in tf32. Lane l has of a rows l / 4 and eight on (a0, a1) at column l % 4, a2, a3 four columns
// on; of b column l / 4, rows l % 4 and four on; of c rows as of a, columns 2 (l % 4) and the next.
__device__ __forceinline__ void multiply_add(float (&c)[4], float a0, float a1, float a2, float a3, float b0,
                                             float b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a0)), "r"(__float_as_uint(a1)), "r"(__float_as_uint(a2)),
        "r"(__float_as_uint(a3)), "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

template <class S>
struct Block {
  using T = typename S::T;
  static constexpr int kWidth = S::kWidth, kStates = S::kStates, kThreads = S::kThreads;
  using States = float[kWidth][kStates];
  const CudaSelectiveGradient& g;
  const CudaSelectiveScan& p;
  Tile<S>& tile;
  int64_t sequence, group, rows, first_channel, channel;  // rows: the first of the sequence
  Segment part;
  int warp, lane, slot, state;  // slot, state: the thread's first channel in the block and its first state
  bool vectors;

  __device__ Block(const CudaSelectiveGradient& gradient, int64_t segments, bool aligned, Tile<S>& shared)
      : g(gradient), p(gradient.forward), tile(shared), vectors(aligned) {
    const int64_t groups = (p.channels + S::kChannels - 1) / S::kChannels;
    group = blockIdx.x % groups;
    part = segment_of(p, blockIdx.x / groups % segments, segments);
    sequence = blockIdx.x / groups / segments;
    rows = sequence * p.tokens;
    warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    slot = (warp * 8 + lane % 8) * kWidth, state = lane / 8 * kStates;
    first_channel = group * S::kChannels, channel = first_channel + slot;
  }

  // The thread's states in row `row` of [rows, E, N].
  __device__ void load_states(States& x, const float* from, int64_t row) const {
    const bool packed = kStates % 4 == 0 && p.states % 4 == 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const float* const at = from + (row * p.channels + channel + k) * p.states + state;
      const int count = from && channel + k < p.channels ? static_cast<int>(p.states) - state : 0;
      if (packed) {
#pragma unroll
        for (int i = 0; i < kStates; i += 4) {
          float4 four = {};
          if (i < count) four = *reinterpret_cast<const float4*>(at + i);
          x[k][i] = four.x, x[k][i + 1] = four.y, x[k][i + 2] = four.z, x[k][i + 3] = four.w;
        }
      } else {
#pragma unroll
        for (int i = 0; i < kStates; ++i) x[k][i] = i < count ? at[i] : 0.0f;
      }
    }
  }
  __device__ void store_states(float* to, int64_t row, const States& x) const {
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
#pragma unroll
      for (int i = 0; i < kStates; ++i)
        if (channel + k < p.channels && state + i < p.states)
          to[(row * p.channels + channel + k) * p.states + state + i] = x[k][i];
  }
  __device__ void prefetch_states(const float* from, int64_t row) const {
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      if (channel + k < p.channels && state < p.states)
        prefetch(from + (row * p.channels + channel + k) * p.states + state);
  }
  __device__ void keep(int index, const States& x) const {
#pragma unroll
    for (int i = 0; i < kWidth * kStates; i += 4)
      *reinterpret_cast<float4*>(tile.before[index][i / 4][threadIdx.x]) = {
          x[i / kStates][i % kStates], x[i / kStates][i % kStates + 1], x[i / kStates][i % kStates + 2],
          x[i / kStates][i % kStates + 3]};
  }
  __device__ void recall(int index, States& x) const {
#pragma unroll
    for (int i = 0; i < kWidth * kStates; i += 4) {
      float four[4];
      read_floats(four, tile.before[index][i / 4][threadIdx.x]);
#pragma unroll
      for (int j = 0; j < 4; ++j) x[i / kStates][i % kStates + j] = four[j];
    }
  }

  // Calls body(token of the chunk, channel of the block, offset from the first of both in [B, T, E], exists) for each of
  // the thread's pieces of kPiece channels; `limit` tokens exist.
  template <int kPiece, class Body>
  __device__ __forceinline__ void each_piece(int limit, const Body& body) const {
    constexpr int kEach = S::kChannels / kPiece, kRows = kThreads / kEach;
    static_assert(kThreads % kEach == 0 && kChunk % kRows == 0);
    const int c = static_cast<int>(threadIdx.x) % kEach * kPiece,
              first = static_cast<int>(threadIdx.x) / kEach, channels = static_cast<int>(p.channels);
    const bool there = c < channels - static_cast<int>(first_channel);
    constexpr int kUnroll = kPiece == 1 ? 1 : kChunk / kRows;
#pragma unroll kUnroll
    for (int i = 0; i < kChunk / kRows; ++i) {
      const int t = first + i * kRows;
      body(t, c, t * channels + c, there && t < limit);
    }
  }
  __device__ __forceinline__ int limit_of(int64_t begin) const {
    return static_cast<int>(min(part.end - begin, int64_t{kChunk}));
  }
  __device__ __forceinline__ int64_t base_of(int64_t begin) const {
    return (rows + begin) * p.channels + first_channel;
  }
  __device__ void fetch(T (&to)[3][kChunk][S::kChannels], int64_t begin) const {
    constexpr int kPiece = 16 / sizeof(T);
    const int limit = limit_of(begin);
    const int64_t base = base_of(begin);
    const T* const from[3] = {static_cast<const T*>(p.delta) + base, static_cast<const T*>(p.u) + base,
                              static_cast<const T*>(g.dy) + base};
    if (vectors)
      each_piece<kPiece>(limit, [&](int t, int c, int offset, bool exists) {
#pragma unroll
        for (int which = 0; which < 3; ++which)
          copy_async16(&to[which][t][c], from[which] + (exists ? offset : 0), exists);
      });
    else
      each_piece<1>(limit, [&](int t, int c, int offset, bool exists) {
#pragma unroll
        for (int which = 0; which < 3; ++which)
          to[which][t][c] = exists ? from[which][offset] : from_float<T>(0.0f);
      });
  }
  __device__ void widen_rows(const T (&from)[3][kChunk][S::kChannels]) const {
    constexpr int kPiece = 16 / sizeof(T);
    each_piece<kPiece>(kChunk, [&](int t, int c, int, bool) {
      float delta[kPiece], u[kPiece], up[kPiece];
      load_floats(delta, &from[0][t][c]);
      load_floats(u, &from[1][t][c]);
      load_floats(up, &from[2][t][c]);
#pragma unroll
      for (int i = 0; i < kPiece; ++i) u[i] *= delta[i];
#pragma unroll
      for (int i = 0; i < kPiece; i += 4) {
        *reinterpret_cast<float4*>(&tile.rows[kDelta][t][c + i]) = {delta[i], delta[i + 1], delta[i + 2],
                                                                    delta[i + 3]};
        *reinterpret_cast<float4*>(&tile.rows[kInput][t][c + i]) = {u[i], u[i + 1], u[i + 2], u[i + 3]};
        *reinterpret_cast<float4*>(&tile.rows[kUp][t][c + i]) = {up[i], up[i + 1], up[i + 2], up[i + 3]};
      }
    });
  }
  // The gradients of delta and u.
  __device__ void store_rows(int64_t begin) const {
    constexpr int kPiece = 16 / sizeof(T);
    const int64_t base = base_of(begin);
    T* const to[2] = {static_cast<T*>(g.ddelta) + base, static_cast<T*>(g.du) + base};
    if (vectors)
      each_piece<kPiece>(limit_of(begin), [&](int t, int c, int offset, bool exists) {
#pragma unroll
        for (int which = 0; which < 2; ++which) {
          float x[kPiece];
          read_floats(x, &tile.rows[which][t][c]);
          if (exists) store_pack(to[which] + offset, x);
        }
      });
    else
      each_piece<1>(limit_of(begin), [&](int t, int c, int offset, bool exists) {
#pragma unroll
        for (int which = 0; which < 2; ++which)
          if (exists) to[which][offset] = from_float<T>(tile.rows[which][t][c]);
      });
  }

  // B and C: a thread has one of them, one state and every kMapRows-th token.
  static constexpr int kMapRows = kThreads / S::kValues, kMaps = kChunk / kMapRows;
  __device__ int map_state() const { return static_cast<int>(threadIdx.x) % S::kRow; }
  __device__ int map_which() const { return static_cast<int>(threadIdx.x) / S::kRow % 2; }
  __device__ int map_token() const { return static_cast<int>(threadIdx.x) / S::kValues; }
  __device__ void load_maps(uint32_t (&next)[kMaps], int64_t begin) const {
    const void* const from = map_which() ? p.c : p.b;
    const int64_t base = (rows + begin) * p.states + map_state();
    const int limit = map_state() < p.states ? limit_of(begin) : 0, states = static_cast<int>(p.states);
#pragma unroll
    for (int i = 0; i < kMaps; ++i) {
      const int t = map_token() + i * kMapRows;
      next[i] = t < limit ? element_bits(from, p.map_type, base + t * states) : 0;
    }
  }
  __device__ void store_maps(const uint32_t (&next)[kMaps]) const {
#pragma unroll
    for (int i = 0; i < kMaps; ++i)
      tile.maps[map_token() + i * kMapRows][map_which()][map_state()] = from_bits(next[i], p.map_type);
  }

  // What the thread adds to the sums for one token, added up over the channels of the warp.
  __device__ void add_up(int t, const float (&values)[2][kStates]) const {
    auto& sums = tile.sums[S::kTensor ? 0 : warp];
    __syncwarp();
#pragma unroll
    for (int which = 0; which < 2; ++which)
#pragma unroll
      for (int i = 0; i < kStates; i += 4)
        *reinterpret_cast<float4*>(&sums[lane % 8][2 * state + which * kStates + i]) = {
            values[which][i], values[which][i + 1], values[which][i + 2], values[which][i + 3]};
    __syncwarp();
    for (int i = lane; i < S::kValues; i += 32) {
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < 8; ++j) sum += sums[j][i];
      tile.parts[warp][t][i] = sum;
    }
  }
  // The same for eight tokens, from the products with the matrix that has a column for each token: rows are those of the
  // lanes l / 4, first b, then c.
  __device__ void add_up(int first, const float (&products)[kStates][4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < kStates; j += 4)
        *reinterpret_cast<float4*>(&tile.parts[2 * warp + lane / 4 % 2][first + lane % 4 * 2 + i % 2]
                                              [2 * state + i / 2 * kStates + j]) = {
            products[j][i], products[j + 1][i], products[j + 2][i], products[j + 3][i]};
  }
  // The block's sums of the gradients of B and C.
  __device__ void write_maps(int64_t begin) const {
    const int64_t blocks = (p.channels + S::kChannels - 1) / S::kChannels,
                  each = p.batch * p.tokens * p.states;
    const int n = map_state(), value = (n / kStates * 2 + map_which()) * kStates + n % kStates,
              limit = n < p.states ? limit_of(begin) : 0, states = static_cast<int>(p.states);
    float* const to = g.maps + (map_which() * blocks + group) * each + (rows + begin) * p.states + n;
#pragma unroll 4
    for (int i = 0; i < kMaps; ++i) {
      const int t = map_token() + i * kMapRows;
      float sum = 0.0f;
#pragma unroll
      for (int w = 0; w < S::kParts; ++w) sum += tile.parts[w][t][value];
      if (t < limit) to[t * states] = sum;
    }
  }
};

}  // namespace weft::kernels::chunked
