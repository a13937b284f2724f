// How the passes of selective_scan over single tokens are laid out. Time is serial; kLanes neighbouring lanes share a
// channel, each with kStates states in registers. Tiles of tokens come through shared memory: rows of channels as they
// are, by asynchronous copies two tiles ahead, B and C in fp32.
#pragma once

#include "ops/scan/selective.cuh"

namespace weft::kernels {

namespace serial {

constexpr int kThreads = 128, kGroup = 8;
constexpr int kBuffers = 4;  // one tile at work, two on their way, one being written

template <class T, int kLanes, int kStates>
struct Tiles {
  static constexpr int kChannels = kThreads / kLanes, kRow = kLanes * kStates;
  static constexpr int kTile = kLanes == 1 ? 16 : 32;  // tokens
  T value[kBuffers][kTile][kChannels], delta[kBuffers][kTile][kChannels];
  float maps[2][kTile][2][kRow];  // b and c of two tiles
};

// A block's channels and part of the sequence, and a thread's states.
template <class T, int kLanes, int kStates>
struct Place {
  using S = Tiles<T, kLanes, kStates>;
  static constexpr int kPiece = 16 / sizeof(T), kPieces = S::kChannels / kPiece;  // of a row, in 16 bytes
  const CudaSelectiveScan& p;
  bool vectors;  // rows may be read and written in pieces
  int64_t sequence, segment, begin, end, rows, first_channel, channel;
  int slot, first, count;  // slot: the channel in the block; first, count: states
  bool there;

  // Blocks take `count_of_segments` of each sequence, from number `from` on.
  __device__ Place(const CudaSelectiveScan& problem, int64_t segments, int64_t from,
                   int64_t count_of_segments, bool aligned)
      : p(problem), vectors(aligned) {
    const int64_t groups = (p.channels + S::kChannels - 1) / S::kChannels;
    const Segment part = segment_of(p, from + blockIdx.x / groups % count_of_segments, segments);
    sequence = blockIdx.x / groups / count_of_segments, rows = sequence * p.tokens;
    segment = part.index, begin = part.begin, end = part.end;
    first_channel = blockIdx.x % groups * S::kChannels;
    slot = static_cast<int>(threadIdx.x) / kLanes, channel = first_channel + slot;
    there = channel < p.channels;
    first = static_cast<int>(threadIdx.x) % kLanes * kStates;
    count = there ? max(0, min(kStates, static_cast<int>(p.states) - first)) : 0;
  }

  // Offset of the states in [rows, E, N].
  __device__ int64_t at(int64_t row) const { return (row * p.channels + channel) * p.states + first; }
  __device__ void load(float (&x)[kStates], const float* from) const {
#pragma unroll
    for (int i = 0; i < kStates; ++i) x[i] = from && i < count ? from[i] : 0.0f;
  }
  __device__ void store(float* to, const float (&x)[kStates]) const {
    if (kStates % 4 == 0 && p.states == S::kRow && reinterpret_cast<uintptr_t>(to) % 16 == 0) {
#pragma unroll
      for (int i = 0; i + 3 < kStates; i += 4)
        if (there) *reinterpret_cast<float4*>(to + i) = {x[i], x[i + 1], x[i + 2], x[i + 3]};
      return;
    }
#pragma unroll
    for (int i = 0; i < kStates; ++i)
      if (i < count) to[i] = x[i];
  }

  // Calls body(token of the tile, channel of the block, offset from the first of both in [B, T, E], exists) for each of
  // the thread's pieces of kWidth channels.
  template <int kWidth, class Body>
  __device__ __forceinline__ void each_piece(int64_t t, const Body& body) const {
    constexpr int kEach = S::kChannels / kWidth, kRows = kThreads / kEach;
    static_assert(kThreads % kEach == 0);
    const int c = static_cast<int>(threadIdx.x) % kEach * kWidth,
              first_row = static_cast<int>(threadIdx.x) / kEach, channels = static_cast<int>(p.channels),
              limit = static_cast<int>(min(end - t, int64_t{S::kTile}));
    const bool exists = c < channels - static_cast<int>(first_channel);
    if (kRows > S::kTile && first_row >= S::kTile) return;
    constexpr int kUnroll = kWidth == 1 ? 1 : (S::kTile + kRows - 1) / kRows;
#pragma unroll kUnroll
    for (int i = 0; i < (S::kTile + kRows - 1) / kRows; ++i) {
      const int row = first_row + i * kRows;
      body(row, c, row * channels + c, exists && row < limit);
    }
  }
  // u and delta, or dy and delta.
  __device__ __forceinline__ void fetch(S& tiles, int buffer, const void* value, int64_t t) const {
    const int64_t base = (rows + t) * p.channels + first_channel;
    const T* const values = static_cast<const T*>(value) + base;
    const T* const deltas = static_cast<const T*>(p.delta) + base;
    auto &to = tiles.value[buffer], &to_delta = tiles.delta[buffer];
    if (vectors)
      each_piece<kPiece>(t, [&](int row, int c, int offset, bool exists) {
        copy_async16(&to[row][c], values + (exists ? offset : 0), exists);
        copy_async16(&to_delta[row][c], deltas + (exists ? offset : 0), exists);
      });
    else
      each_piece<1>(t, [&](int row, int c, int offset, bool exists) {
        to[row][c] = exists ? values[offset] : from_float<T>(0.0f);
        to_delta[row][c] = exists ? deltas[offset] : from_float<T>(0.0f);
      });
  }
  __device__ __forceinline__ void write(void* to, const T (&from)[S::kTile][S::kChannels], int64_t t) const {
    T* const data = static_cast<T*>(to) + (rows + t) * p.channels + first_channel;
    if (vectors)
      each_piece<kPiece>(t, [&](int row, int c, int offset, bool exists) {
        if (exists) *reinterpret_cast<uint4*>(data + offset) = *reinterpret_cast<const uint4*>(&from[row][c]);
      });
    else
      each_piece<1>(t, [&](int row, int c, int offset, bool exists) {
        if (exists) data[offset] = from[row][c];
      });
  }
};

// B and C of the tile behind the next, in registers as they are: a thread has one of them, one state and every kRows-th
// token.
template <class S>
struct Maps {
  static constexpr int kRow = S::kRow;
  static constexpr int kRows = kThreads / (2 * kRow), kEach = S::kTile / kRows;
  static_assert(kThreads % (2 * kRow) == 0 && S::kTile % kRows == 0);
  const CudaSelectiveScan& p;
  const void* from;
  int row, n, which;
  uint32_t next[kEach];

  __device__ explicit Maps(const CudaSelectiveScan& problem) : p(problem) {
    row = static_cast<int>(threadIdx.x) / (2 * kRow), n = static_cast<int>(threadIdx.x) % kRow;
    which = static_cast<int>(threadIdx.x) / kRow % 2;
    from = which ? p.c : p.b;
  }
  __device__ __forceinline__ void load(int64_t rows, int64_t t, int64_t end) {
    const int limit = n < p.states ? static_cast<int>(max(min(end - t, int64_t{S::kTile}), int64_t{0})) : 0,
              states = static_cast<int>(p.states);
    const int64_t base = (rows + t) * p.states + n;
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      next[i] =
          row + i * kRows < limit ? element_bits(from, p.map_type, base + (row + i * kRows) * states) : 0;
  }
  __device__ __forceinline__ void store(float (&to)[S::kTile][2][kRow]) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) to[row + i * kRows][which][n] = from_bits(next[i], p.map_type);
  }
};

// Calls launch(grid, vectors) for a kernel whose blocks take `segments` segments of each sequence; `value`, `out`: the
// tensors beside delta, null when there is none.
template <class T, int kLanes, int kStates, class Launch>
CudaStatus launch_tiles(const CudaSelectiveScan& p, int64_t segments, const void* value, const void* out,
                        const Launch& launch) {
  using S = Tiles<T, kLanes, kStates>;
  constexpr int kPiece = 16 / sizeof(T);
  bool vectors = true;
  for (const void* x : {p.delta, value, out}) vectors = vectors && packs(x, p.channels, kPiece, sizeof(T));
  const int64_t groups = (p.channels + S::kChannels - 1) / S::kChannels;
  launch(static_cast<unsigned>(p.batch * segments * groups), vectors);
  return last_status();
}

}  // namespace serial
}  // namespace weft::kernels
