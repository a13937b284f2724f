// Tiles of 16-bit numbers for tensor cores. A tile of R rows and a multiple of 8 columns lies in groups of 8 columns:
// element (r, c) at (c / 8 R + r) 8 + c % 8. Its 8x8 blocks are 128 bytes in a row, so that ldmatrix meets no bank
// conflicts, a slice of columns is contiguous, and device memory and shared memory hold the same bytes.
#pragma once

#include "ops/cuda/device.cuh"

namespace weft::kernels {

template <int kRows, class T>
__device__ __forceinline__ T* piece(T* tile, int row, int group) {
  return tile + (group * kRows + row) * 8;
}

// The operands of multiply_add for a 16x16 part of a tile, `row` and `column` its corner. Left: a[i][j] = tile[row + i][column
// + j], transposed: tile[row + j][column + i].
template <int kRows, class T>
__device__ __forceinline__ void left(uint32_t (&a)[4], const T* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  load_matrices(a, piece<kRows>(tile, row + lane % 16, column / 8 + lane / 16));
}
template <int kRows, class T>
__device__ __forceinline__ void left_transposed(uint32_t (&a)[4], const T* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  load_matrices_transposed(a, piece<kRows>(tile, row + lane % 8 + lane / 16 * 8, column / 8 + lane / 8 % 2));
}
// Right, for two products of 8 columns each (b[0], b[1] and b[2], b[3]): b[i][j] = tile[row + i][column + j], transposed:
// tile[row + j][column + i].
template <int kRows, class T>
__device__ __forceinline__ void right(uint32_t (&b)[4], const T* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  load_matrices_transposed(b, piece<kRows>(tile, row + lane % 16, column / 8 + lane / 16));
}
template <int kRows, class T>
__device__ __forceinline__ void right_transposed(uint32_t (&b)[4], const T* tile, int row, int column) {
  const int lane = threadIdx.x % 32;
  load_matrices(b, piece<kRows>(tile, row + lane % 8 + lane / 16 * 8, column / 8 + lane / 8 % 2));
}

// c[16x16], as two accumulators, += a b.
template <class T>
__device__ __forceinline__ void multiply_add_pair(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[4]) {
  multiply_add<T>(c0, a, b[0], b[1]);
  multiply_add<T>(c1, a, b[2], b[3]);
}

// kSteps times: load(operand, step) gets a right operand that use(operand, step) multiplies with. Loads run kAhead steps in
// front: a warp that is alone on its scheduler waits for shared memory otherwise.
template <int kSteps, int kAhead, class Load, class Use>
__device__ __forceinline__ void load_ahead(const Load& load, const Use& use) {
  uint32_t b[kAhead + 1][4];
#pragma unroll
  for (int n = 0; n < kSteps + kAhead; ++n) {
    if (n < kSteps) load(b[n % (kAhead + 1)], n);
    if (n >= kAhead) use(b[(n - kAhead) % (kAhead + 1)], n - kAhead);
  }
}

// Two accumulators of 8 columns as the left operand of the next product.
template <class T>
__device__ __forceinline__ void pack_left(uint32_t (&a)[4], const float (&c0)[4], const float (&c1)[4]) {
  a[0] = pack<T>(c0[0], c0[1]);
  a[1] = pack<T>(c0[2], c0[3]);
  a[2] = pack<T>(c1[0], c1[1]);
  a[3] = pack<T>(c1[2], c1[3]);
}

// The transpose of an 8x8 matrix that a warp holds in the layout of load_matrices.
__device__ __forceinline__ uint32_t transpose_matrix(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// Groups of 64 rows are this many apart in tiles that are written row by row: no bank conflicts then either.
constexpr int kSpreadRows = 65;

// Starts to copy `width` (64 or more, or 32; a power of 2) columns of 64 rows, `stride` elements apart, into a spread tile;
// rows from `valid` on are zeros. By all threads of the block, or as `thread` of so many threads. Rolled: for kernels whose
// code is larger than what a multiprocessor keeps of it.
template <bool kRolled = false, class T>
__device__ __forceinline__ void copy_rows(T* tile, const T* rows, int64_t stride, int valid, int width,
                                          int thread, int threads) {
  const int shift = 28 - __clz(width);  // of groups in a row
  const auto copy = [&](int i) {
    const int row = i >> shift, group = i & ((1 << shift) - 1);
    copy_async16(piece<kSpreadRows>(tile, row, group), rows + (row < valid ? row * stride : 0) + group * 8,
                 row < valid);
  };
  if constexpr (kRolled) {
#pragma unroll 1
    for (int i = thread; i < width * 8; i += threads) copy(i);
  } else {
    for (int i = thread; i < width * 8; i += threads) copy(i);
  }
}
template <bool kRolled = false, class T>
__device__ __forceinline__ void copy_rows(T* tile, const T* rows, int64_t stride, int valid, int width) {
  copy_rows<kRolled>(tile, rows, stride, valid, width, threadIdx.x, blockDim.x);
}
// The same of kWidth columns by kThreads threads, with few instructions.
template <int kWidth, int kThreads, class T>
__device__ __forceinline__ void copy_rows_in_steps(T* tile, const T* rows, int64_t stride, int valid,
                                                   int thread) {
  constexpr int kPieces = kWidth / 8, kStep = kThreads / kPieces;
  const int row = thread / kPieces, group = thread % kPieces;
  T* to = piece<kSpreadRows>(tile, row, group);
  const T* from = rows + row * stride + 8 * group;
#pragma unroll
  for (int n = 0; n < 64 / kStep; ++n) {
    const bool is = row + n * kStep < valid;
    copy_async16(to + n * kStep * 8, is ? from + n * kStep * stride : rows, is);
  }
}
// Starts to copy `width` columns of a tile in device memory into a spread tile.
template <class T>
__device__ __forceinline__ void copy_tile(T* tile, const T* from, int width) {
  for (int i = threadIdx.x; i < width * 8; i += blockDim.x)
    copy_async16(piece<kSpreadRows>(tile, i % 64, i / 64), from + i * 8);
}
// Starts to copy `count` elements, a multiple of 16 bytes.
template <class T>
__device__ __forceinline__ void copy_block(T* to, const T* from, int count) {
  constexpr int kEach = 16 / sizeof(T);
  for (int i = threadIdx.x; i < count / kEach; i += blockDim.x)
    copy_async16(to + i * kEach, from + i * kEach);
}

// A lower triangular 64x64 matrix as its 16x16 tiles on and below the diagonal, row after row.
constexpr int kLowerSize = 10 * 256;
template <class T>
__device__ __forceinline__ T* lower_block(T* blocks, int row, int column) {
  return blocks + (row * (row + 1) / 2 + column) * 256;
}

// A float operand as the sum of two numbers of type T, which keeps about 16 (bf16) or 22 bits.
struct SplitOperand {
  uint32_t high[4], low[4];
};
template <class T>
__device__ __forceinline__ void split(uint32_t& high, uint32_t& low, float x, float y) {
  high = pack<T>(x, y);
  const float2 h = unpack<T>(high);
  low = pack<T>(x - h.x, y - h.y);
}
template <class T>
__device__ __forceinline__ void multiply_add_pair(float (&c0)[4], float (&c1)[4], const SplitOperand& a,
                                                  const SplitOperand& b) {
  multiply_add_pair<T>(c0, c1, a.low, b.high);
  multiply_add_pair<T>(c0, c1, a.high, b.low);
  multiply_add_pair<T>(c0, c1, a.high, b.high);
}
}  // namespace weft::kernels
