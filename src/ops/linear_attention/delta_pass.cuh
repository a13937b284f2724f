// Delta rule: what the passes over the chunks share, forwards with the state and backwards with its gradient. A warp has 16
// columns of the state, transposed in its accumulators [16, K]: what one product leaves is an operand of the next. The
// warps of a block share the tiles of the tokens.
#pragma once

#include "ops/linear_attention/delta.cuh"

namespace weft::kernels::delta {

constexpr int kMaxWarps = 8;

// Waits for a chunk when at most `stages` of them are in shared memory or on their way.
__device__ __forceinline__ void wait_for_chunk(int stages) {
  if (stages == 3)
    copy_async_wait<1>();
  else
    copy_async_wait<0>();
  __syncthreads();
}

// One chunk in shared memory. `values`: V, or dY in the backward, for the columns of the block. K_in has a tile of its own
// behind the values with a vector decay; else it is K_out.
template <class T, int K, int kPairsSize>
struct Stage {
  T keys[kSpreadRows * K], queries[kSpreadRows * K];
  T solve[2 * kPairsSize], reads[kPairsSize];  // lower triangles, or square tiles
  Facts<K> facts;
  T values[1];  // [64, 16 warps]

  static __host__ __device__ constexpr int values_size(int warps) { return kSpreadRows * 16 * warps; }
  static __host__ __device__ constexpr size_t bytes(int warps, bool vector) {
    const size_t size =
        offsetof(Stage, values) + sizeof(T) * (values_size(warps) + (vector ? kSpreadRows * K : 0));
    return (size + 127) / 128 * 128;
  }
  __device__ const T* keys_in(int warps, bool vector) const {
    return vector ? values + values_size(warps) : keys;
  }
};

// A state [16, K] of a warp: element (v, k) is [K, V] in memory.
template <int K>
__device__ __forceinline__ void load_state(float (&s)[K / 8][4], const float* from, int V, int column) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < K / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      s[j][i] =
          from ? from[static_cast<int64_t>(8 * j + lane % 4 * 2 + i % 2) * V + column + lane / 4 + i / 2 * 8]
               : 0.f;
}
// Columns [column, column + 16) of the identity [K, K].
template <int K>
__device__ __forceinline__ void load_identity(float (&s)[K / 8][4], int column) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < K / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      s[j][i] = 8 * j + lane % 4 * 2 + i % 2 == column + lane / 4 + i / 2 * 8 ? 1.f : 0.f;
}
// Zeros in `count` numbers, a multiple of 8, by all threads of the block.
template <class T>
__device__ __forceinline__ void clear(T* to, int count) {
  for (int i = threadIdx.x; i < count / 8; i += blockDim.x)
    reinterpret_cast<uint4*>(to)[i] = make_uint4(0, 0, 0, 0);
}
template <int K>
__device__ __forceinline__ void store_state(const float (&s)[K / 8][4], float* to, int V, int column) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < K / 8; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      to[static_cast<int64_t>(8 * j + lane % 4 * 2 + i % 2) * V + column + lane / 4 + i / 2 * 8] = s[j][i];
}
// What a block works on, and its ring of chunks.
template <class T, int K, int kPairsSize>
struct Block {
  using Stage = delta::Stage<T, K, kPairsSize>;
  const CudaLinearAttention& p;
  const Work& work;
  unsigned char* shared;
  int stages;
  int warps = blockDim.x / 32, warp = threadIdx.x / 32, h = blockIdx.y;
  int b = blockIdx.z / work.segments, segment = blockIdx.z % work.segments;
  int begin = segment * work.segment_chunks, end = min(begin + work.segment_chunks, work.chunks);
  int V = static_cast<int>(p.value_width);
  int block_column = blockIdx.x * 16 * warps,
      column = block_column + 16 * warp;  // of the block and of the warp
  bool vector = p.decay == Decay::vector;

  __device__ Stage& stage(int step) const {
    return *reinterpret_cast<Stage*>(shared + step % stages * Stage::bytes(warps, vector));
  }
  __device__ int64_t state_at() const { return (static_cast<int64_t>(b) * p.heads + h) * K * V; }
  __device__ int64_t edge() const {
    return (static_cast<int64_t>(b) * p.heads + h) * work.segments + segment;
  }
  // A block of a summary has columns of E, or of M; the values of the latter are zeros.
  __device__ __forceinline__ bool has_maps(bool summary) const { return summary && block_column >= V; }
  // The state before the segment; of a summary zeros, or columns of the identity.
  __device__ __forceinline__ void load_first(float (&s)[K / 8][4], bool summary) const {
    if (has_maps(summary)) {
      load_identity<K>(s, column - V);
      for (int n = 0; n < stages; ++n) clear(stage(n).values, Stage::values_size(warps));
      return;
    }
    const float* initial = p.initial_state ? p.initial_state + state_at() : nullptr;
    if (work.segments > 1) initial = work.edges + edge() * K * V;
    load_state<K>(s, summary ? nullptr : initial, V, column);
  }
  // The state after the segment, if anybody reads it; of a summary E or M.
  __device__ __forceinline__ void store_last(const float (&s)[K / 8][4], bool summary) const {
    if (has_maps(summary))
      store_state<K>(s, work.maps + edge() * K * K, K, column - V);
    else if (summary)
      store_state<K>(s, work.edges + edge() * K * V, V, column);
    else if (segment == work.segments - 1)
      store_state<K>(s, p.state + state_at(), V, column);
  }
  // The same of the backward: the gradient of the state after the segment, then of that before it.
  __device__ __forceinline__ void load_gradient(float (&ds)[K / 8][4], const float* dstate,
                                                bool summary) const {
    const float* after = dstate ? dstate + state_at() : nullptr;
    if (work.segments > 1) after = work.dedges + edge() * K * V;
    load_state<K>(ds, summary ? nullptr : after, V, column);
  }
  __device__ __forceinline__ void store_gradient(const float (&ds)[K / 8][4], float* dinitial,
                                                 bool summary) const {
    if (summary)
      store_state<K>(ds, work.dedges + edge() * K * V, V, column);
    else if (dinitial && segment == 0)
      store_state<K>(ds, dinitial + state_at(), V, column);
  }
  // Starts to copy all but the values.
  __device__ __forceinline__ void load(Stage& to, int c) const {
    const int64_t first = static_cast<int64_t>(c) * kChunk, chunk = work.chunk(p, b, h, c);
    const int valid = valid_tokens(p, first);
    if (vector) {
      copy_tile(to.values + Stage::values_size(warps), tile_at<T>(work.keys_in, chunk, kChunk * K), K);
      copy_tile(to.keys, tile_at<T>(work.keys_out, chunk, kChunk * K), K);
      copy_tile(to.queries, tile_at<T>(work.queries, chunk, kChunk * K), K);
    } else {
      copy_rows(to.keys, row_at<T>(p.k, b, first, key_head(p, h)), p.k.token, valid, K);
      copy_rows(to.queries, row_at<T>(p.q, b, first, key_head(p, h)), p.q.token, valid, K);
    }
    copy_block(reinterpret_cast<char*>(&to.facts),
               reinterpret_cast<char*>(tile_at<Facts<K>>(work.facts, chunk, 1)), sizeof(Facts<K>));
  }
};

// Columns [column, column + 16) of a packed state to its tile [V, K].
template <class T>
__device__ __forceinline__ void store_packed_state(const uint32_t (&a)[4], T* to, int V, int column, int d) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < 4; ++i)
    *reinterpret_cast<uint32_t*>(
        to + (static_cast<int64_t>(d / 8 + i / 2) * V + column + lane / 4 + i % 2 * 8) * 8 + lane % 4 * 2) =
        a[i];
}
// The transpose of a packed [16, 64] to the columns [column, column + 16) of a tile [64, V].
template <class T>
__device__ __forceinline__ void store_transposed(const uint32_t (&a)[4][4], T* to, int column) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      *reinterpret_cast<uint32_t*>(piece<kChunk>(to, 16 * j + i / 2 * 8 + lane / 4, column / 8 + i % 2) +
                                   lane % 4 * 2) = transpose_matrix(a[j][i]);
}
// The same to rows `stride` apart, the first `valid` of them.
template <class T>
__device__ __forceinline__ void store_rows(const uint32_t (&a)[4][4], T* to, int64_t stride, int valid) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = 16 * j + i / 2 * 8 + lane / 4;
      const uint32_t x = transpose_matrix(a[j][i]);
      if (t < valid) *reinterpret_cast<uint32_t*>(to + t * stride + i % 2 * 8 + lane % 4 * 2) = x;
    }
}

template <class T>
__device__ __forceinline__ void pack_tokens(uint32_t (&a)[4][4], const float (&x)[8][4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) pack_left<T>(a[j], x[2 * j], x[2 * j + 1]);
}
// Columns (tokens, or K) times one number each.
template <int kColumns>
__device__ __forceinline__ void scale_columns(float (&x)[kColumns / 8][4], const float* scale) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) {
    const float2 by = *reinterpret_cast<const float2*>(scale + 8 * j + lane % 4 * 2);
    x[j][0] *= by.x, x[j][1] *= by.y, x[j][2] *= by.x, x[j][3] *= by.y;
  }
}
// The left operand of V's transpose at (row, column), from the values of a chunk.
template <class T>
__device__ __forceinline__ void transposed_values(uint32_t (&a)[4], const T* values, int row, int column) {
  left_transposed<kSpreadRows>(a, values, row, column);
}
// R = write V - erase K_in S, transposed and packed; `erased` is K_in' S'. Without kValues V is zero.
template <class T, bool kValues = true, class Stage>
__device__ __forceinline__ void subtract_erased(uint32_t (&a)[4][4], float (&erased)[8][4], const Stage& in,
                                                int warp) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    uint32_t v[4];
    if constexpr (kValues) transposed_values(v, in.values, 16 * j, 16 * warp);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int t = 16 * j + i / 2 * 8 + lane % 4 * 2;
      const float2 erase = *reinterpret_cast<const float2*>(in.facts.erase + t);
      const float* e = &erased[2 * j + i / 2][i % 2 * 2];
      if constexpr (!kValues) {
        a[j][i] = pack<T>(-erase.x * e[0], -erase.y * e[1]);
        continue;
      }
      const float2 x = unpack<T>(v[i]), write = *reinterpret_cast<const float2*>(in.facts.tokens.write + t);
      a[j][i] = pack<T>(write.x * x.x - erase.x * e[0], write.y * x.y - erase.y * e[1]);
    }
  }
}

// The grid and the shared memory of the passes over `columns` columns.
template <class Stage, class Kernel, class... Arguments>
CudaStatus launch(Kernel* kernel, const CudaLinearAttention& p, const Work& work, int64_t columns, int warps,
                  void* stream, const Arguments&... arguments) {
  const size_t stage = Stage::bytes(warps, p.decay == Decay::vector), most = shared_limit(p.capability);
  const int stages = 3 * stage <= most ? 3 : 2 * stage <= most ? 2 : 1;
  if (const auto error = allow_shared(kernel, stages * stage)) return status_of(error);
  const dim3 grid(static_cast<unsigned>(columns / 16 / warps), static_cast<unsigned>(p.heads),
                  static_cast<unsigned>(p.batch * work.segments));
  kernel<<<grid, 32 * warps, stages * stage, static_cast<cudaStream_t>(stream)>>>(arguments..., stages);
  return last_status();
}

}  // namespace weft::kernels::delta
