// Tiles of linear attention with a decay for every key channel: chunks of 16 tokens, their inputs in shared memory and
// what decays them.
//
// The decay between tokens i < r is a product of a_t = exp(log_decay_t) over (i, r]. No quotient of running products is
// ever formed, so that a_t = 0 is as good as any: a document start is one. Inside a chunk the pairs (r, i) are sorted
// into four levels by the highest bit in which r and i differ. On the level of `half` a token is a row (that bit is
// set) or a column, and a row meets only the columns of the other half of its own block of 2 * half. With `border` the
// first token of the row's half,
//   decay(i, r] = up(r) down(i),   up(r) = a_border .. a_r,   down(i) = a_{i+1} .. a_{border-1}.
// A level's tile holds rows times `up` and columns times `down`, and its product with itself has the level's pairs.
#pragma once

#include "ops/cuda/device.cuh"
#include "ops/linear_attention/kernel_cuda.h"

namespace weft::kernels::vector_decay {

constexpr int kChunk = 16, kLevels = 4;
// Chunks whose decayed tiles are in shared memory: one is used, of one the pairs are formed, one is decayed.
constexpr int kStages = 3;
// Key channels of a block where a head has more than one.
constexpr int kKeyBlock = 128;
// Rows of a matrix of pairs; 48 bytes apart, eight of them meet no bank twice.
constexpr int kPairRow = 24;

// Where an element of a [16, width] tile lies; width is a multiple of 64. Free of bank conflicts for ldmatrix of either
// kind and for four groups of eight lanes that are four rows apart.
__device__ __forceinline__ int at16(int width, int row, int column) {
  const int piece = (column >> 3) ^ (row & 7) ^ ((row >> 3) << 1);
  return row * width + (piece << 3 | (column & 7));
}
// The same for a tile of fp32.
__device__ __forceinline__ int at32(int width, int row, int column) {
  const int piece = (column >> 2) ^ (row & 4);
  return row * width + (piece << 2 | (column & 3));
}

// What one sweep over the chunks of a sequence is given. Letters as in kernel_cuda.h.
struct Sweep {
  int64_t tokens;
  int heads, group;  // group: value heads that share a key head
  int key_width, value_width;
  int key_blocks = 1;  // every head's key channels are cut into blocks of 128 that blocks of threads own
  int segments, segment_chunks;  // every sequence is cut into segments that are swept at the same time
  float scale;
  CudaRows q, k, v, log_decay, write;
  const uint8_t* starts;
  const float* bonus;
  const void* dy;         // [B, T, H, V]
  const float* begin;     // [B, H, segments, K, V] or null: the state that a segment's sweep begins with
  const float* opposite;  // the same of the sweep in the other direction, for the decay's gradient
  float* end;  // [B, H, segments, K, V] or null: behind each segment; else only behind the last: [B, H, K, V]
  float* total_decay;  // [B, H, segments, K]
  void* out;           // [B, T, H, V] y or dv; [B, T, H, K] dq or dk; null: not wanted
  bool out_fp32;
  bf16* read_gate;      // [B, T, H, K] q dq without the diagonal
  float* carried_gate;  // [B, H, segments, K] sum over V of state times its gradient, behind each segment
  float* dlog_decay;    // [B, T, H, K]
  float* dwrite;        // [B, T, H]
  float* dbonus;        // [B, H, segments, K]
};

// One CTA's place: a sequence's head, the chunks of a segment and a block of key channels.
struct Place {
  int64_t batch;
  int head, key_head, segment;
  int key_block, first_key;
  int64_t first, chunks;  // of all of the sequence; how many
  __device__ int64_t row(const Sweep& s, int64_t token) const {
    return (batch * s.tokens + token) * s.heads + head;
  }
};
__device__ __forceinline__ Place place_of(const Sweep& s) {
  Place p;
  p.key_block = blockIdx.x % s.key_blocks, p.first_key = p.key_block * kKeyBlock;
  p.segment = blockIdx.x / s.key_blocks % s.segments;
  const int64_t task = blockIdx.x / s.key_blocks / s.segments;
  p.batch = task / s.heads, p.head = static_cast<int>(task % s.heads), p.key_head = p.head / s.group;
  const int64_t all = (s.tokens + kChunk - 1) / kChunk;
  p.first = min(static_cast<int64_t>(p.segment) * s.segment_chunks, all);
  p.chunks = min(static_cast<int64_t>(s.segment_chunks), all - p.first);
  return p;
}

__device__ __forceinline__ const char* head_of(const CudaRows& x, const Place& p, int head) {
  const int bytes = x.type == CudaType::fp32 ? 4 : 2;
  return static_cast<const char*>(x.data) + (p.batch * x.batch + head * x.head) * bytes;
}

// What a token has of single numbers: its write strength, and whether the state before it is dropped.
struct Scalars {
  float write[kChunk];
  float start[kChunk];
};

__device__ __forceinline__ float2 times(float2 x, float2 y) { return {x.x * y.x, x.y * y.y}; }

// Without a branch: lanes of a warp differ.
__device__ __forceinline__ float2 select(bool first, float2 x, float2 y) {
  return {first ? x.x : y.x, first ? x.y : y.y};
}

// Two neighbours in a tile of 16 bits.
template <class T>
__device__ __forceinline__ float2 pair_at(const void* tile, int at) {
  return unpack<T>(*reinterpret_cast<const uint32_t*>(static_cast<const T*>(tile) + at));
}

// Products of decays in a lane's two channels and four tokens, lanes 8 apart having the next four: `up` from the first
// of the four on to the token, `before` without the token's own, `down` from the next token to the last of the four;
// `prior` and `later` of all tokens before and behind the four, `edge` of those between the four and the
// middle of the chunk.
struct Products {
  float2 decay[4], kept[4], up[4], before[4], down[4];
  float2 prior, later, edge, all;

  __device__ __forceinline__ void multiply() {
    const int lane = threadIdx.x % 32, part = lane / 8;
    float2 product = decay[0];
    up[0] = product, before[0] = kept[0];
#pragma unroll
    for (int j = 1; j < 4; ++j) {
      before[j] = times(product, kept[j]);
      product = up[j] = times(product, decay[j]);
    }
    down[3] = {1, 1};
#pragma unroll
    for (int j = 2; j >= 0; --j) down[j] = times(down[j + 1], decay[j + 1]);
    const float2 one{1, 1};
    prior = later = edge = one;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 other{__shfl_sync(0xffffffff, product.x, i * 8 + lane % 8),
                         __shfl_sync(0xffffffff, product.y, i * 8 + lane % 8)};
      prior = times(prior, select(i < part, other, one));
      later = times(later, select(i > part, other, one));
      if (i == 1) edge = select(part == 0, other, edge);
      if (i == 2) edge = select(part == 3, other, edge);
    }
    all = times(product, later);
  }

  // A bit for every token of the chunk whose decay is zero, of the first channel in the low half.
  __device__ __forceinline__ uint32_t vanished() const {
    const int part = threadIdx.x % 32 / 8;
    uint32_t bits = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      bits |= (decay[j].x == 0 ? 1u : 0u) << (4 * part + j) | (decay[j].y == 0 ? 1u : 0u)
                                                                  << (4 * part + j + 16);
    bits |= __shfl_xor_sync(0xffffffff, bits, 8);
    return bits | __shfl_xor_sync(0xffffffff, bits, 16);
  }
};

// Where a lane points ldmatrix for four 8 by 8 parts of a 16 by 16 block, ordered with their columns or with their rows
// in the low bit.
__device__ __forceinline__ int2 columns_first(int lane) {
  return {lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8};
}
__device__ __forceinline__ int2 rows_first(int lane) { return {lane % 16, lane / 16 * 8}; }

// How a tile of 16 bits lies: as at16 has it.
template <int kWidth>
struct Swizzled {
  static __device__ __forceinline__ int at(int row, int column) { return at16(kWidth, row, column); }
};

// Keeps x in a register where the compiler would rather work it out anew in every step.
__device__ __forceinline__ void hold(uint32_t& x) { asm volatile("" : "+r"(x)); }

// Bytes from a tile on to where a lane points ldmatrix, for the four 16 by 16 blocks of 64 columns.
template <class At>
struct Blocks {
  uint32_t at[4];
  template <bool kHold>
  __device__ __forceinline__ void find(int2 place) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      at[i] = 2 * At::at(place.x, 16 * i + place.y);
      if (kHold) hold(at[i]);
    }
  }
  // The address for the block of columns from 16 i on; `further` bytes are between columns 64 apart.
  __device__ __forceinline__ uint32_t of(uint32_t tile, int i, int further) const {
    return tile + at[i % 4] + i / 4 * further;
  }
};

// The matrices of pairs of one chunk: 16 by 16, and the diagonal apart.
template <class T>
struct Pairs {
  T* matrix;
  float* diagonal;
};
// The level on which token `row` as a row meets token `column`, or -1 when it does not come after it.
__device__ __forceinline__ int level_of(int row, int column) {
  return row > column ? 31 - __clz(row ^ column) : -1;
}

// Channels from a block's first on that exist.
__device__ __forceinline__ int keys_of(const Sweep& s, const Place& p) { return s.key_width - p.first_key; }

// Moves registers from helping warps, which keep kHelper, to the others, in kernels with as many of both that may use 128
// each.
template <bool kMoves, bool kHelps, int kHelper>
__device__ __forceinline__ void share_registers() {
  if constexpr (kMoves && kHelps) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kHelper));
  if constexpr (kMoves && !kHelps) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(256 - kHelper));
}

}  // namespace weft::kernels::vector_decay
