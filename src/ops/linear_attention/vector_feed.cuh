// What feeds the sweeps over a vector decay: chunks of 16 tokens come into a ring of slots by the tensor copy engine, in
// panels of hopper.cuh, and one thread asks for them.
#pragma once

#include "ops/cuda/hopper.cuh"
#include "ops/linear_attention/vector_tiles.cuh"

namespace weft::kernels::vector_decay {

// Where an element of a chunk lies in its panels, of 64 columns in 16 bits or 32 in fp32.
template <int kRows = kChunk>
struct Panels {
  static __device__ __forceinline__ int at(int row, int column) {
    return (column >> 6) * kRows * 64 + row * 64 + (((column >> 3 & 7) ^ (row & 7)) << 3 | (column & 7));
  }
  static __device__ __forceinline__ int at_fp32(int row, int column) {
    return (column >> 5) * kRows * 32 + row * 32 + (((column >> 2 & 7) ^ (row & 7)) << 2 | (column & 3));
  }
};

// A sweep and the maps of what it reads.
struct FedSweep {
  Sweep sweep;
  CUtensorMap q, k, v, dy, gate, read_gate;
  bool stacked;  // the maps are those of make_panels_map
};

// What a kernel wants of a chunk, and bytes of what else it keeps in shared memory.
struct Needs {
  bool q, k, v, dy, read_gate;
  int ring;         // slots, at least 4
  int pair_stages;  // chunks whose pairs are in shared memory
  int extra;
};

// A chunk's inputs in one slot of the ring, and all of shared memory; offsets in bytes.
struct Layout {
  int q, k, v, dy, gate, read_gate, slot, ring, pair_stages;
  // Elements of a [16, K] tile. Bytes of a stage: levels, in, out, decays of the chunk, a bit for each that vanished, what is
  // gentle.
  int tile, stage;
  int stages, pairs, scalars, full, extra, bytes;
};
__host__ __device__ inline Layout layout_of(int key_width, int value_width, bool gate_fp32, Needs needs) {
  Layout l{};
  const int key_tile = kChunk * key_width * 2, value_tile = kChunk * value_width * 2;
  int at = 0;
  const auto take = [&](int bytes) { return at += bytes, at - bytes; };
  l.q = take(needs.q ? key_tile : 0), l.k = take(needs.k ? key_tile : 0);
  l.v = take(needs.v ? value_tile : 0), l.dy = take(needs.dy ? value_tile : 0);
  l.gate = take(gate_fp32 ? 2 * key_tile : key_tile);
  l.read_gate = take(needs.read_gate ? key_tile : 0);
  l.slot = at, l.ring = needs.ring;
  l.tile = kChunk * key_width;
  l.stage = (kLevels + 2) * key_tile + key_width * 6 + 128;
  at = l.ring * l.slot;
  l.stages = take(kStages * l.stage);
  l.pair_stages = needs.pair_stages;
  l.pairs = take(l.pair_stages * (kChunk * kPairRow * 2 + kChunk * 4));
  l.scalars = take(l.ring * kChunk * 8);
  l.full = take(l.ring * 8);
  at = (at + 15) / 16 * 16;
  l.extra = take(needs.extra);
  l.bytes = at;
  return l;
}

template <class T>
__device__ __forceinline__ Pairs<T> pairs_at(const Layout& l, char* shared, int step) {
  char* at = shared + l.pairs + step % l.pair_stages * (kChunk * kPairRow * 2 + kChunk * 4);
  return {reinterpret_cast<T*>(at), reinterpret_cast<float*>(at + kChunk * kPairRow * 2)};
}
__device__ __forceinline__ char* stage_at(const Layout& l, char* shared, int step) {
  return shared + l.stages + step % kStages * l.stage;
}
// Of a stage: whether 16 channels are gentle.
template <int kKey>
__device__ __forceinline__ uint32_t* gentle_at(char* stage, int channels) {
  return reinterpret_cast<uint32_t*>(stage + (kLevels + 2) * kChunk * kKey * 2 + kKey * 6) + channels;
}
__device__ __forceinline__ char* slot_at(const Layout& l, char* shared, int step) {
  return shared + step % l.ring * l.slot;
}
__device__ __forceinline__ Scalars& scalars_at(const Layout& l, char* shared, int step) {
  return reinterpret_cast<Scalars*>(shared + l.scalars)[step % l.ring];
}
__device__ __forceinline__ uint64_t* full_at(const Layout& l, char* shared, int step) {
  return reinterpret_cast<uint64_t*>(shared + l.full) + step % l.ring;
}

// By one thread, before a barrier of the block.
__device__ __forceinline__ void init_feed(const Layout& l, char* shared) {
  for (int i = 0; i < l.ring; ++i) barrier_init(full_at(l, shared, i), 1);
  barrier_init_fence();
}

// Asks for kRows tokens of kWidth columns of a head, by one thread: a copy, or one for each panel. `fp32` only where it may be.
template <int kRows, int kWidth>
__device__ __forceinline__ void feed_rows(const CUtensorMap& map, bool stacked, bool fp32, char* to,
                                          uint64_t* full, int first, int head, int token, int batch) {
  const int columns = fp32 ? kPanelColumns / 2 : kPanelColumns;
  if (stacked) {
    copy_panels(to, &map, full, first / columns, head, token, batch);
  } else {
    for (int i = 0; i < kWidth / columns; ++i)
      copy_panel(to + i * kRows * kPanelRowBytes, &map, full, first + i * columns, head, token, batch);
  }
}

// Asks for a chunk's inputs, by one thread.
template <int kKey, int kValue>
__device__ __forceinline__ void feed_chunk(const FedSweep& f, const Layout& l, const Place& p, Needs needs,
                                           int64_t token, char* slot, uint64_t* full) {
  barrier_expect(full, l.slot);
  barrier_arrive(full);
  const auto keys = [&](int at, const CUtensorMap& map, int head, bool fp32) {
    feed_rows<kChunk, kKey>(map, f.stacked, fp32, slot + at, full, p.first_key, head, static_cast<int>(token),
                            static_cast<int>(p.batch));
  };
  const auto values = [&](int at, const CUtensorMap& map) {
    feed_rows<kChunk, kValue>(map, f.stacked, false, slot + at, full, 0, p.head, static_cast<int>(token),
                              static_cast<int>(p.batch));
  };
  keys(l.gate, f.gate, p.head, f.sweep.log_decay.type == CudaType::fp32);
  if (needs.q) keys(l.q, f.q, p.key_head, false);
  if (needs.k) keys(l.k, f.k, p.key_head, false);
  if (needs.v) values(l.v, f.v);
  if (needs.dy) values(l.dy, f.dy);
  if (needs.read_gate) keys(l.read_gate, f.read_gate, p.head, false);
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

// The stages of a segment's chunks, one barrier a step. Of chunk c the rows are used by the main stage, c + 1's pairs are
// formed, c + 2 is decayed and those behind are on their way. Helping warps call `decay(step)` and, when all others are done
// with its tiles, `close(step)`, the others `main(step)` and, in each step from -2 on, `ahead(step)`. One thread of all calls
// `feed(step)`.
template <class Feed>
__device__ __forceinline__ void feed_first(const Layout& l, int chunks, bool feeds, const Feed& feed) {
  if (feeds)
    for (int step = 0; step < l.ring - 3 && step < chunks; ++step) feed(step);
  __syncwarp();
  __syncthreads();
}
template <class Feed, class Decay, class Pair, class Close>
__device__ __forceinline__ void run_helping_steps(const Layout& l, char* shared, int chunks, bool feeds,
                                                  const Feed& feed, const Decay& decay, const Pair& pair,
                                                  const Close& close) {
  feed_first(l, chunks, feeds, feed);
  for (int step = -2; step < chunks; ++step) {
    if (feeds && step + l.ring - 1 < chunks) feed(step + l.ring - 1);
    __syncwarp();
    if (step > 0) close(step - 1);
    if (step + 2 < chunks) {
      barrier_wait(full_at(l, shared, step + 2), (step + 2) / l.ring & 1);
      decay(step + 2);
    }
    if (step + 1 >= 0 && step + 1 < chunks) pair(step + 1);
    __syncthreads();
  }
  if (chunks > 0) close(chunks - 1);
}
template <class ChunkOf, class Feed, class Ahead, class Main>
__device__ __forceinline__ void run_main_steps(const Sweep& s, const Layout& l, const Place& p, char* shared,
                                               const ChunkOf& chunk_of, bool feeds, const Feed& feed,
                                               const Ahead& ahead, const Main& main) {
  const int chunks = static_cast<int>(p.chunks);
  const bool given = s.starts || s.write.data;
  const auto read = [&](int step) {
    return given && step < chunks ? scalars_of(s, p, chunk_of(step) * kChunk + threadIdx.x) : float2{1, 0};
  };
  const auto keep = [&](int step, float2 x) {
    if (threadIdx.x >= kChunk) return;
    Scalars& to = scalars_at(l, shared, step);
    to.write[threadIdx.x] = x.x, to.start[threadIdx.x] = x.y;
  };
  for (int step = 0; step < l.ring - 3; ++step) keep(step, read(step));
  feed_first(l, chunks, feeds, feed);
  for (int step = -2; step < chunks; ++step) {
    if (feeds && step + l.ring - 1 < chunks) feed(step + l.ring - 1);
    __syncwarp();
    const float2 next = read(step + l.ring - 1);
    if (step >= 0) main(step);
    ahead(step);
    keep(step + l.ring - 1, next);
    __syncthreads();
  }
}

}  // namespace weft::kernels::vector_decay
