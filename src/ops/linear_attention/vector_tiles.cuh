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
// Chunks of inputs in shared memory: of chunk c the rows are used by the main stage, c + 1's pairs are formed, c + 2
// is decayed, c + 3 and c + 4 are on their way. Decayed tiles live for three of those.
constexpr int kRing = 5, kStages = 3;
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
  int segments, segment_chunks;  // every sequence is cut into segments that are swept at the same time
  bool only_state;               // the state behind every segment and its decay, from a state of zero
  float scale;
  CudaRows q, k, v, log_decay, write;
  const uint8_t* starts;
  const float* bonus;
  const void* dy;         // [B, T, H, V]
  const float* begin;     // [B, H, segments, K, V] or null: the state that a segment's sweep begins with
  const float* opposite;  // the same of the sweep in the other direction, for the decay's gradient
  float* end;  // [B, H, segments, K, V] or null: behind each segment; else only behind the last: [B, H, K, V]
  bool end_of_all;     // `end` has every segment
  float* total_decay;  // [B, H, segments, K], of `only_state`
  void* out;           // [B, T, H, V] y or dv; [B, T, H, K] dq or dk; null: not wanted
  bool out_fp32;
  bf16* read_gate;      // [B, T, H, K] q dq without the diagonal
  float* carried_gate;  // [B, H, segments, K] sum over V of state times its gradient, behind each segment
  float* dlog_decay;    // [B, T, H, K]
  float* dwrite;        // [B, T, H]
  float* dbonus;        // [B, H, segments, K]
};

// The 128-bit pieces of a chunk's inputs in one slot of the ring, offsets in bytes, and all of shared memory.
struct Layout {
  int q, k, v, dy, gate, read_gate, slot;
  int tile, stage;  // elements of a [16, K] tile; bytes of a stage: levels, in, out
  int stages, pairs, scalars, extra, bytes;
};
struct Needs {
  bool q, k, v, dy, read_gate;
  int extra;  // bytes of what else the kernel keeps
};
__host__ __device__ inline Layout layout_of(int key_width, int value_width, bool gate_fp32, Needs needs) {
  Layout l{};
  const int key_tile = kChunk * key_width * 2, value_tile = kChunk * value_width * 2;
  int at = 0;
  const auto take = [&](int bytes) { return at += bytes, at - bytes; };
  l.q = take(key_tile), l.k = take(key_tile);
  l.v = take(needs.v ? value_tile : 0), l.dy = take(needs.dy ? value_tile : 0);
  l.gate = take(gate_fp32 ? 2 * key_tile : key_tile);
  l.read_gate = take(needs.read_gate ? key_tile : 0);
  l.slot = at;
  l.tile = kChunk * key_width;
  l.stage = (kLevels + 2) * key_tile + key_width * 6;
  at = kRing * l.slot;
  l.stages = take(kStages * l.stage);
  l.pairs = take(kStages * (kChunk * kPairRow * 2 + kChunk * 4));
  l.scalars = take(kRing * kChunk * 8);
  l.extra = take(needs.extra);
  l.bytes = at;
  return l;
}

// One CTA's place: a sequence's head and the chunks of a segment.
struct Place {
  int64_t batch;
  int head, key_head, segment;
  int64_t first, chunks;  // of all of the sequence; how many
  __device__ int64_t row(const Sweep& s, int64_t token) const {
    return (batch * s.tokens + token) * s.heads + head;
  }
};
__device__ __forceinline__ Place place_of(const Sweep& s) {
  Place p;
  p.segment = blockIdx.x % s.segments;
  const int64_t task = blockIdx.x / s.segments;
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

// Starts the copy of rows [token, token + 16) of a head, zeros beyond the last token; by the first kThreads threads.
template <int kWidth, int kThreads, bool kFp32>
__device__ __forceinline__ void load_rows(char* to, const char* head, int64_t row_bytes, int64_t token,
                                          int64_t tokens) {
  constexpr int kPieces = kFp32 ? kWidth / 4 : kWidth / 8;
  const int left = static_cast<int>(min(int64_t{kChunk}, tokens - token));
  head += token * row_bytes;
#pragma unroll
  for (int first = 0; first < kChunk * kPieces; first += kThreads) {
    const int i = first + threadIdx.x, row = i / kPieces, piece = i % kPieces;
    if (kChunk * kPieces % kThreads && i >= kChunk * kPieces) break;
    const bool valid = row < left;
    const int element = kFp32 ? at32(kWidth, row, piece * 4) * 4 : at16(kWidth, row, piece * 8) * 2;
    copy_async16(to + element, head + (valid ? row * row_bytes + piece * 16 : 0), valid);
  }
}
// The same of a tensor of either width.
template <int kWidth, int kThreads>
__device__ __forceinline__ void load_rows(char* to, const CudaRows& x, const char* head, int64_t token,
                                          int64_t tokens) {
  if (x.type == CudaType::fp32) {
    load_rows<kWidth, kThreads, true>(to, head, x.token * 4, token, tokens);
  } else {
    load_rows<kWidth, kThreads, false>(to, head, x.token * 2, token, tokens);
  }
}

// What a token has of single numbers: its write strength, and whether the state before it is dropped.
struct Scalars {
  float write[kChunk];
  float start[kChunk];
};

// A token's q and k, or ones where only the decays are wanted, as rows and columns of tiles.
enum class Rows { queries, ones };
enum class Columns { written_keys, keys, ones };

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

// The chunk's decayed tiles from its inputs, 16 key channels by each helping warp: levels, then `in` = rows times the
// decay from the chunk's first token on, then `out` = columns times the decay up to its last, the decay of the whole
// chunk, and a bit for every token and channel whose decay is zero. With a bonus a row is read before its own decay. Of `only_state` no levels.
template <class T, int kWidth, Rows kRows, Columns kColumns>
__device__ __forceinline__ void decay_chunk(const Sweep& s, const Layout& l, const char* raw,
                                            const Scalars& scalars, int helper, char* stage, float* total) {
  constexpr int kTile = kChunk * kWidth;
  const int lane = threadIdx.x % 32, part = lane / 8, channel = 16 * helper + 2 * (lane % 8);
  const bool bonus = s.bonus != nullptr, fp32 = s.log_decay.type == CudaType::fp32;
  T* tiles = reinterpret_cast<T*>(stage);
  Products d;
  float2 rows[4], columns[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int t = 4 * part + j, at = at16(kWidth, t, channel);
    const float2 g = fp32 ? *reinterpret_cast<const float2*>(raw + l.gate + at32(kWidth, t, channel) * 4)
                          : pair_at<T>(raw + l.gate, at);
    const float kept = scalars.start[t] != 0 ? 0.f : 1.f;
    d.kept[j] = {kept, kept};
    d.decay[j] = {kept * fast_exp2(g.x * kLog2e), kept * fast_exp2(g.y * kLog2e)};
    rows[j] = columns[j] = {1, 1};
    if (kRows == Rows::queries) rows[j] = times(pair_at<T>(raw + l.q, at), {s.scale, s.scale});
    if (kColumns != Columns::ones) columns[j] = pair_at<T>(raw + l.k, at);
    if (kColumns == Columns::written_keys)
      columns[j] = times(columns[j], {scalars.write[t], scalars.write[t]});
  }
  d.multiply();
  const bool upper = part & 2, odd = part & 1;
  const auto put = [&](int tile, int j, float2 x) {
    *reinterpret_cast<uint32_t*>(tiles + tile * kTile + at16(kWidth, 4 * part + j, channel)) =
        pack<T>(x.x, x.y);
  };
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    d.up[j] = select(bonus, d.before[j], d.up[j]);
    put(kLevels, j, times(rows[j], times(d.up[j], d.prior)));
    put(kLevels + 1, j, times(columns[j], times(d.down[j], d.later)));
  }
  if (!s.only_state) {
    const float2 one{1, 1};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 own = select(bonus, d.kept[j], d.decay[j]);
      put(3, j, times(select(upper, rows[j], columns[j]), times(select(upper, d.up[j], d.down[j]), d.edge)));
      put(2, j, times(select(odd, rows[j], columns[j]), select(odd, d.up[j], d.down[j])));
      const float2 of_one = j == 0 ? d.decay[1] : j == 1 ? one : j == 2 ? own : times(d.decay[2], own);
      put(1, j, times(j & 2 ? rows[j] : columns[j], of_one));
      put(0, j, j & 1 ? times(rows[j], own) : columns[j]);
    }
  }
  const uint32_t vanished = d.vanished();
  if (part != 0) return;
  float* whole = reinterpret_cast<float*>(stage + (kLevels + 2) * kTile * 2);
  *reinterpret_cast<float2*>(whole + channel) = d.all;
  *reinterpret_cast<uint32_t*>(reinterpret_cast<uint16_t*>(whole + kWidth) + channel) = vanished;
  if (total) total[channel] *= d.all.x, total[channel + 1] *= d.all.y;
}

// Where a lane points ldmatrix for four 8 by 8 parts of a 16 by 16 block, ordered with their columns or with their rows
// in the low bit.
__device__ __forceinline__ int2 columns_first(int lane) {
  return {lane % 8 + lane / 16 * 8, lane / 8 % 2 * 8};
}
__device__ __forceinline__ int2 rows_first(int lane) { return {lane % 16, lane / 16 * 8}; }

// The matrices of pairs of one chunk: 16 by 16, and the diagonal apart.
template <class T>
struct Pairs {
  T* matrix;
  float* diagonal;
};
template <class T>
__device__ __forceinline__ Pairs<T> pairs_at(const Layout& l, char* shared, int step) {
  char* at = shared + l.pairs + step % kStages * (kChunk * kPairRow * 2 + kChunk * 4);
  return {reinterpret_cast<T*>(at), reinterpret_cast<float*>(at + kChunk * kPairRow * 2)};
}
__device__ __forceinline__ char* stage_at(const Layout& l, char* shared, int step) {
  return shared + l.stages + step % kStages * l.stage;
}
__device__ __forceinline__ char* slot_at(const Layout& l, char* shared, int step) {
  return shared + step % kRing * l.slot;
}
__device__ __forceinline__ Scalars& scalars_at(const Layout& l, char* shared, int step) {
  return reinterpret_cast<Scalars*>(shared + l.scalars)[step % kRing];
}

// The level on which token `row` as a row meets token `column`, or -1 when it does not come after it.
__device__ __forceinline__ int level_of(int row, int column) {
  return row > column ? 31 - __clz(row ^ column) : -1;
}

// Starts the copies of a chunk's inputs, by the first kThreads threads.
template <int kKey, int kValue, int kThreads>
__device__ __forceinline__ void load_chunk(const Sweep& s, const Layout& l, const Place& p, Needs needs,
                                           int64_t token, char* slot) {
  const auto load_keys = [&](int at, const CudaRows& x) {
    load_rows<kKey, kThreads, false>(slot + at, head_of(x, p, p.key_head), x.token * 2, token, s.tokens);
  };
  if (needs.q) load_keys(l.q, s.q);
  if (needs.k) load_keys(l.k, s.k);
  load_rows<kKey, kThreads>(slot + l.gate, s.log_decay, head_of(s.log_decay, p, p.head), token, s.tokens);
  if (needs.v)
    load_rows<kValue, kThreads, false>(slot + l.v, head_of(s.v, p, p.head), s.v.token * 2, token, s.tokens);
  const int64_t row = p.row(s, 0);
  if (needs.dy)
    load_rows<kValue, kThreads, false>(slot + l.dy, static_cast<const char*>(s.dy) + row * kValue * 2,
                                       int64_t{s.heads} * kValue * 2, token, s.tokens);
  if (needs.read_gate)
    load_rows<kKey, kThreads, false>(slot + l.read_gate,
                                     reinterpret_cast<const char*>(s.read_gate) + row * kKey * 2,
                                     int64_t{s.heads} * kKey * 2, token, s.tokens);
}

// Write strength and start of a token, for the threads below kChunk.
__device__ __forceinline__ float2 scalars_of(const Sweep& s, const Place& p, int64_t token) {
  float2 x{1, 0};
  if (threadIdx.x >= kChunk || token >= s.tokens) return x;
  if (s.write.data)
    x.x = *reinterpret_cast<const float*>(head_of(s.write, p, p.head) + token * s.write.token * 4);
  if (s.starts) x.y = s.starts[p.batch * s.tokens + token];
  return x;
}

// Moves registers from helping warps, which keep kHelper, to the others, in kernels with as many of both that may use 128
// each.
template <bool kMoves, bool kHelps, int kHelper>
__device__ __forceinline__ void share_registers() {
  if constexpr (kMoves && kHelps) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kHelper));
  if constexpr (kMoves && !kHelps) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(256 - kHelper));
}

// The stages of a segment's chunks, one barrier a step: helping warps call `decay(step)` and a step later `pair(step)`,
template <class Decay, class Pair>
__device__ __forceinline__ void run_helping_steps(int chunks, const Decay& decay, const Pair& pair) {
  __syncthreads();
  for (int step = -2; step < chunks; ++step) {
    if (step + 2 < chunks) decay(step + 2);
    if (step + 1 >= 0 && step + 1 < chunks) pair(step + 1);
    __syncthreads();
  }
}
// and the others a step later `main(step)`. `load(step)` starts copies; `chunk_of(step)` says which chunk a step is.
template <class ChunkOf, class Load, class Main>
__device__ __forceinline__ void run_main_steps(const Sweep& s, const Layout& l, const Place& p, char* shared,
                                               const ChunkOf& chunk_of, const Load& load, const Main& main) {
  const int chunks = static_cast<int>(p.chunks);
  const auto read = [&](int step) {
    return step < chunks ? scalars_of(s, p, chunk_of(step) * kChunk + threadIdx.x) : float2{};
  };
  const auto keep = [&](int step, float2 x) {
    if (threadIdx.x >= kChunk) return;
    Scalars& to = scalars_at(l, shared, step);
    to.write[threadIdx.x] = x.x, to.start[threadIdx.x] = x.y;
  };
  for (int step = 0; step < 2; ++step) {
    if (step < chunks) load(step);
    copy_async_commit();
    keep(step, read(step));
  }
  copy_async_wait<1>();
  __syncthreads();
  for (int step = -2; step < chunks; ++step) {
    if (step + 4 < chunks) load(step + 4);
    copy_async_commit();
    const float2 ahead = read(step + 4);
    if (step >= 0) main(step);
    keep(step + 4, ahead);
    copy_async_wait<1>();
    __syncthreads();
  }
}

}  // namespace weft::kernels::vector_decay
