// Delta rule: what the passes and the backward with products of warpgroups share. A warpgroup has 64 columns of the
// state, transposed in its accumulators [64, K].
#pragma once

#include "ops/cuda/hopper.cuh"
#include "ops/linear_attention/delta_pass.cuh"

namespace weft::kernels::delta {

constexpr int kSquare = kChunk * kChunk;

// Right operands of warpgroup products, 16 rows and 64 columns: b[i][j] = tile[j][16 n + i] (deep) or tile[16 n + i][j]
// (wide), without swizzle: 8x8 blocks are contiguous.
__device__ __forceinline__ uint64_t operand(const void* from, uint64_t leading, uint64_t stride) {
  return (stride << 32) | (leading << 16) | ((shared_address(from) & 0x3FFFF) >> 4);
}
template <int kRows, class T>
__device__ __forceinline__ uint64_t deep(const T* tile, int column) {
  return operand(piece<kRows>(tile, 0, column / 8), kRows, 8);
}
template <int kRows, class T>
__device__ __forceinline__ uint64_t wide(const T* tile, int row, int column) {
  return operand(piece<kRows>(tile, row, column / 8), 8, kRows);
}
// The same of 64 rows of a chunk, in a spread tile or as the copy engine leaves them.
template <class T>
struct Panels {
  const T* first;
  __device__ __forceinline__ const T* panel(int column) const {
    return first + column / kPanelColumns * (kChunk * kPanelColumns);
  }
  __device__ __forceinline__ uint64_t operand(int column) const {
    return uint64_t{0x40000040} << 32 |
           panel_operand(panel(column));  // groups of 8 rows 1024 bytes apart, swizzled
  }
};
template <class T>
__device__ __forceinline__ uint64_t deep_rows(const T* tile, int column) {
  return deep<kSpreadRows>(tile, column);
}
template <class T>
__device__ __forceinline__ uint64_t wide_rows(const T* tile, int row, int column) {
  return wide<kSpreadRows>(tile, row, column);
}
template <class T>
__device__ __forceinline__ uint64_t deep_rows(Panels<T> x, int column) {
  return x.operand(column) + column % kPanelColumns / 16 * kDeepStep;
}
template <class T>
__device__ __forceinline__ uint64_t wide_rows(Panels<T> x, int row, int column) {
  return x.operand(column) + row / 16 * kWideStep;
}
template <class T>
__device__ __forceinline__ void transposed_values(uint32_t (&a)[4], Panels<T> values, int row, int column) {
  const int lane = threadIdx.x % 32, group = column / 8 + lane / 8 % 2;
  const auto* panel = reinterpret_cast<const char*>(values.panel(8 * group));
  load_matrices_transposed(a, panel + panel_offset(row + lane % 8 + lane / 16 * 8, group % 8));
}
// 8 accumulators of 8 columns as one of 64.
__device__ __forceinline__ float (&flat(float (&c)[4]))[32] { return reinterpret_cast<float(&)[32]>(c); }
template <int kColumns>
__device__ __forceinline__ void pin_columns(float (&c)[kColumns / 8][4]) {
#pragma unroll
  for (int j = 0; j < kColumns / 8; ++j) pin(c[j]);
}

// Starts to copy a lower triangle into a square tile, whose other blocks are zeros.
template <class T>
__device__ __forceinline__ void copy_lower(T* tile, const T* blocks) {
  for (int i = threadIdx.x; i < kPairs / 8; i += blockDim.x) {
    const int block = i / 32, row = block < 1 ? 0 : block < 3 ? 1 : block < 6 ? 2 : 3;
    const int column = block - row * (row + 1) / 2;
    copy_async16(piece<kChunk>(tile, 16 * row + i % 16, 2 * column + i / 16 % 2), blocks + i * 8);
  }
}
// The same of two triangles by kThreads threads.
template <int kThreads, class T>
__device__ __forceinline__ void copy_lower(T* tile0, const T* blocks0, T* tile1, const T* blocks1) {
#pragma unroll
  for (int i = threadIdx.x; i < (kPairs / 8 + kThreads - 1) / kThreads * kThreads; i += kThreads) {
    if (i >= kPairs / 8) continue;
    const int block = i / 32, row = block < 1 ? 0 : block < 3 ? 1 : block < 6 ? 2 : 3;
    const int column = block - row * (row + 1) / 2;
    const int64_t to = piece<kChunk>(tile0, 16 * row + i % 16, 2 * column + i / 16 % 2) - tile0;
    copy_async16(tile0 + to, blocks0 + i * 8);
    copy_async16(tile1 + to, blocks1 + i * 8);
  }
}
// c [64, 64] += a m' or a m, for a square tile m.
template <class T>
__device__ __forceinline__ void multiply_transposed(float (&c)[8][4], const uint32_t (&a)[4][4], const T* m) {
#pragma unroll
  for (int i = 0; i < 4; ++i) multiply_rows<T, false>(flat(c[0]), a[i], deep<kChunk>(m, 16 * i));
}
template <class T>
__device__ __forceinline__ void multiply(float (&c)[8][4], const uint32_t (&a)[4][4], const T* m) {
#pragma unroll
  for (int r = 0; r < 4; ++r) multiply_rows<T, true>(flat(c[0]), a[r], wide<kChunk>(m, 16 * r, 0));
}
// s [64, K] += a [64, 64] x, x a tile [64, K].
template <class T, int K, class Rows>
__device__ __forceinline__ void add_outer(float (&s)[K / 8][4], const uint32_t (&a)[4][4], Rows x) {
#pragma unroll
  for (int j = 0; j < 4; ++j)
#pragma unroll
    for (int d = 0; d < K; d += 64) multiply_rows<T, true>(flat(s[d / 8]), a[j], wide_rows(x, 16 * j, d));
}

// c [64, 64] = K_in' S' with few registers: a part of the state is packed at a time.
template <class T, int K, class Rows>
__device__ __forceinline__ void multiply_state_in_parts(float (&c)[8][4], const float (&s)[K / 8][4],
                                                        Rows x) {
#pragma unroll
  for (int part = 0; part < K; part += 32) {
    uint32_t a[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) pack_left<T>(a[i], s[part / 8 + 2 * i], s[part / 8 + 2 * i + 1]);
    pin_columns<kChunk>(c);
    products_begin();
#pragma unroll
    for (int i = 0; i < 2; ++i) multiply_rows<T, false>(flat(c[0]), a[i], deep_rows(x, part + 16 * i));
    products_commit();
    products_wait<0>();
    pin_columns<kChunk>(c);
  }
}

// Packs a state [16, K] of a warp as left operands, to device memory too if `states`.
template <class T, int K>
__device__ __forceinline__ void pack_state(uint32_t (&packed)[K / 16][4], const float (&s)[K / 8][4],
                                           T* states, int V, int column) {
#pragma unroll
  for (int d = 0; d < K; d += 16) pack_left<T>(packed[d / 16], s[d / 8], s[d / 8 + 1]);
  if (!states) return;
#pragma unroll
  for (int d = 0; d < K; d += 16) store_packed_state(packed[d / 16], states, V, column, d);
}
// c [64, 64] += a x', x a tile [64, K]; one group of products.
template <class T, int K, class Rows>
__device__ __forceinline__ void multiply_state(float (&c)[8][4], const uint32_t (&a)[K / 16][4], Rows x) {
#pragma unroll
  for (int d = 0; d < K; d += 16) multiply_rows<T, false>(flat(c[0]), a[d / 16], deep_rows(x, d));
  products_commit();
}

// Where what a chunk's forward pass leaves goes: S' and N, if a backward will follow, and Y; the warp's columns.
template <class T>
struct Outputs {
  T *states = nullptr, *values = nullptr, *y = nullptr;
  int64_t stride = 0;  // of Y's rows
  int V = 0, valid = 0, column = 0;

  Outputs() = default;
  __device__ Outputs(const CudaLinearAttention& p, const Work& work, int b, int h, int c, int column)
      : stride(p.heads * p.value_width), V(static_cast<int>(p.value_width)), column(column) {
    const int64_t first = static_cast<int64_t>(c) * kChunk, chunk = work.chunk(p, b, h, c);
    if (work.states) states = tile_at<T>(work.states, chunk, p.key_width * V);
    if (work.values) values = tile_at<T>(work.values, chunk, kChunk * V);
    y = static_cast<T*>(p.y) + ((b * p.tokens + first) * p.heads + h) * V + column;
    valid = valid_tokens(p, first);
  }
};

// One chunk of the forward pass, `in` as Stage has it. `warp`: of those that share in.values. load() starts copies for later.
// Without kValues V is zero. kLean: where there are fewer registers.
template <class T, int K, bool kOutputs, bool kValues = true, bool kLean = false, class Stage, class Rows,
          class Load>
__device__ __forceinline__ void forward_chunk(float (&s)[K / 8][4], const Stage& in, Rows keys_in, int warp,
                                              const Outputs<T>& out, const Load& load) {
  uint32_t a[4][4], packed[K / 16][4];
  {
    float erased[8][4] = {};
    if constexpr (kLean) {
      multiply_state_in_parts<T, K>(erased, s, keys_in);
      load();
    } else {
      pack_state<T, K>(packed, s, out.states, out.V, out.column);
      pin_columns<kChunk>(erased);
      products_begin();
      multiply_state<T, K>(erased, packed, keys_in);
      load();
      products_wait<0>();
      pin_columns<kChunk>(erased);
    }
    subtract_erased<T, kValues>(a, erased, in, warp);
  }
  float values[8][4] = {}, read[8][4] = {};
  pin_columns<kChunk>(values);
  pin_columns<kChunk>(read);
  products_begin();
  multiply_transposed(values, a, in.solve + kSquare);
  multiply_transposed(values, a, in.solve);
  products_commit();
  if constexpr (kOutputs) multiply_state<T, K>(read, packed, in.queries);
  products_wait<kOutputs ? 1 : 0>();
  pin_columns<kChunk>(values);
  if constexpr (kOutputs) {
    pack_tokens<T>(a, values);
    products_wait<0>();
    pin_columns<kChunk>(read);
    scale_columns<kChunk>(read, in.facts.read);
    pin_columns<kChunk>(read);
    products_begin();
    multiply_transposed(read, a, in.reads);
    products_commit();
    if (out.values) store_transposed(a, out.values, out.column);
  }
  scale_columns<kChunk>(values, in.facts.keep);
  scale_columns<K>(s, in.facts.through);
  uint32_t kept[4][4];
  pack_tokens<T>(kept, values);
  pin_columns<K>(s);
  products_begin();
  add_outer<T, K>(s, kept, in.keys);
  products_commit();
  if constexpr (kOutputs) {
    products_wait<1>();
    pin_columns<kChunk>(read);
    uint32_t y[4][4];
    pack_tokens<T>(y, read);
    store_rows(y, out.y, out.stride, out.valid);
  }
  products_wait<0>();
  pin_columns<K>(s);
}

}  // namespace weft::kernels::delta
