// The sweep of the scalar form: what a warpgroup does with the products of a chunk.
#pragma once

#include "ops/linear_attention/scalar_feed.cuh"

namespace weft::kernels::scalar {
namespace {

constexpr int kPanelBytes = kChunk * kPanelRowBytes, kPanelStep = kPanelBytes >> 4;

// A warpgroup's part: head, slice, and where its lanes' numbers of a 64 x 64 product lie: rows `row` and row + 8,
// columns 8 j + column and the next.
struct Part {
  int head, slice, thread, warp, lane, row, column, bar;
  __device__ Part(const Role& role, int first) {  // of its slices
    head = first / role.slices, slice = first % role.slices;
    thread = threadIdx.x % kGroupThreads, warp = __shfl_sync(0xffffffff, thread / 32, 0), lane = thread % 32;
    row = 16 * warp + lane / 4, column = 2 * (lane % 4);
    bar = 1 + threadIdx.x / kGroupThreads;
  }
  __device__ void sync() const { named_barrier(bar, kGroupThreads); }
  // For the warp, after what all its lanes did.
  __device__ void arrive(uint64_t* barrier) const {
    __syncwarp();
    if (lane == 0) barrier_arrive(barrier);
  }
  // Of a panel, where this lane's matrix row begins that holds columns 8 j to 8 j + 15 of the warp's 16 rows.
  __device__ char* matrix_row(char* panel, int j) const {
    return panel + panel_offset(16 * warp + lane % 16, j + lane / 16);
  }
};

// Calls body(where the first lies, how far the second is, first, second) for the pairs of neighbours in a row of the
// accumulators: state[m * kSlices + n] are rows 64 m on of the state, of slice n, or, transposed, its columns 64 m on.
template <class Block, class Body>
__device__ __forceinline__ void for_state(const Role& role, const States& states, const Part& part,
                                          int64_t block, float (&state)[Block::kStates][32],
                                          const Body& body) {
  float* data = states.data + block * role.depth * role.width;
#pragma unroll
  for (int m = 0; m < Block::kStates; ++m) {
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
      const int from_row = part.row + (i & 2) * 4, from_column = i / 4 * 8 + part.column;
      const int slice = (part.slice + m % Block::kSlices) * kSlice, panel = m / Block::kSlices * 64;
      const int row = panel + (Block::kTransposed ? from_column : from_row);
      const int column = slice + (Block::kTransposed ? from_row : from_column);
      if (row < role.depth && column < role.width)  // widths are even
        body(data + static_cast<int64_t>(row) * states.row + static_cast<int64_t>(column) * states.column,
             Block::kTransposed ? states.row : states.column, state[m][i], state[m][i + 1]);
    }
  }
}

template <class Block>
__device__ void load_state(const Role& role, const Part& part, int64_t block,
                           float (&state)[Block::kStates][32]) {
  for_state<Block>(role, role.initial, part, block, state, [](const float* at, int next, float& x, float& y) {
    if (next == 1) {
      const float2 pair = *reinterpret_cast<const float2*>(at);
      x = pair.x, y = pair.y;
    } else {
      x = at[0], y = at[next];
    }
  });
}

// Rows of a final state are contiguous.
template <class Block>
__device__ void save_state(const Role& role, const Part& part, int64_t block,
                           float (&state)[Block::kStates][32]) {
  for_state<Block>(role, role.final, part, block, state, [](float* at, int next, float x, float y) {
    if constexpr (Block::kTransposed)
      at[0] = x, at[next] = y;
    else
      *reinterpret_cast<float2*>(at) = {x, y};
  });
}

// A 64 x 64 product, rounded, into a panel.
template <class T>
__device__ __forceinline__ void store_rounded(const Part& part, const float (&x)[32], char* panel) {
#pragma unroll
  for (int j = 0; j < 8; j += 2)
    store_matrices(part.matrix_row(panel, j), pack<T>(x[4 * j], x[4 * j + 1]),
                   pack<T>(x[4 * j + 2], x[4 * j + 3]), pack<T>(x[4 * j + 4], x[4 * j + 5]),
                   pack<T>(x[4 * j + 6], x[4 * j + 7]));
}

// Masks and decays the pairs of a chunk and packs them as the left operand of the product with c. `diagonal`: the pairs
// (row, row) and (row + 8, row + 8) as packed.
template <class T>
__device__ __forceinline__ void decay_pairs(const Part& part, const Gates& gates, bool reverse,
                                            const float (&pairs)[32], uint32_t (&packed)[4][4],
                                            float (&diagonal)[2]) {
  float exponent[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float4 x = gates.pairs[(part.row + 8 * i) / 2];
    exponent[i] = part.row % 2 ? x.y : x.x;
  }
  const int sign = reverse ? -1 : 1;
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    uint32_t* to = &packed[j / 2][j % 2 * 2];
    to[0] = to[1] = 0;
    const int side = (j / 2 - part.warp) * sign;  // of the diagonal: positive on the one without pairs
    if (side > 0) continue;
    const float4 x = gates.pairs[4 * j + part.lane % 4];
    float kept[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      kept[i] = pairs[4 * j + i] * (fast_exp2(exponent[i / 2] - (i & 1 ? x.y : x.x)) * (i & 1 ? x.w : x.z));
    if (side == 0) {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if ((part.row + (i & 2) * 4 - 8 * j - part.column - (i & 1)) * sign < 0) kept[i] = 0;
    }
    to[0] = pack<T>(kept[0], kept[1]), to[1] = pack<T>(kept[2], kept[3]);
    if (side == 0) {
      const float2 own = unpack<T>(to[j % 2]);
      diagonal[j % 2] = part.row % 2 ? own.y : own.x;
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
    diagonal[i] = __shfl_sync(0xffffffff, diagonal[i], part.lane / 4 * 4 + part.lane / 8);
}

// An address as it is, from which the compiler computes others where they are used, not ahead of a loop in registers.
__device__ __forceinline__ uint32_t here(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Multiplies the rows of a product by their factors.
__device__ __forceinline__ void scale_rows(const Part& part, const float (&factors)[kChunk], float (&x)[32]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) x[i] *= factors[part.row + (i & 2) * 4];
}

__device__ __forceinline__ uint32_t multiply_add_pairs(uint32_t a, uint32_t b, uint32_t c, bf16) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
__device__ __forceinline__ uint32_t multiply_add_pairs(uint32_t a, uint32_t b, uint32_t c, fp16) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// Rows 64 of b', columns the 16 tokens from 16 k on, times the factor of each token: a left operand.
template <class T>
__device__ __forceinline__ void load_columns(const Part& part, const uint2 (&factors)[2], const char* panel,
                                             int k, uint32_t (&packed)[4]) {
  const int token = 16 * k + part.lane / 16 * 8 + part.lane % 8;
  load_matrices_transposed(packed, panel + panel_offset(token, 2 * part.warp + part.lane / 8 % 2));
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint2 factor = factors[i / 2];
    packed[i] = multiply_add_pairs(packed[i], factor.x, multiply_add_pairs(packed[i], factor.y, 0, T{}), T{});
  }
}

// Of the tokens from 16 k on, those that a lane's numbers belong to.
__device__ __forceinline__ void load_factors(const Part& part, const Gates& gates, int k,
                                             uint2 (&factors)[2]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) factors[i] = gates.columns[8 * k + 4 * i + part.lane % 4];
}

// Pairs of numbers as a lane has them of a product: x[8 i + j] at row part.row + 8 i, columns 8 j + part.column and the
// next. From a panel:
__device__ __forceinline__ void load_panel(const Part& part, const char* panel, uint32_t (&x)[16]) {
#pragma unroll
  for (int i = 0; i < 16; ++i)
    x[i] = *reinterpret_cast<const uint32_t*>(panel + panel_offset(part.row + i / 8 * 8, i % 8) +
                                              2 * part.column);
}
// and from device memory, zeros behind the last token and column.
template <class T>
__device__ __forceinline__ void load_rows(const Part& part, const CudaRows& rows, int width, int tokens,
                                          int batch, int token, int head, int slice, uint32_t (&x)[16]) {
  const int first = slice * kSlice + part.column;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = token + part.row + 8 * i;
    const T* const from =
        static_cast<const T*>(rows.data) + batch * rows.batch + t * rows.token + head * rows.head + first;
#pragma unroll
    for (int j = 0; j < 8; ++j)
      x[8 * i + j] =
          t < tokens && first + 8 * j < width ? *reinterpret_cast<const uint32_t*>(from + 8 * j) : 0;
  }
}

template <class T>
__device__ __forceinline__ void store_dots(const Sweep& p, const Role& role, const Part& part, int head,
                                           int slice, int batch, int token, const float (&out)[32],
                                           const float (&diagonal)[2], const uint32_t (&extra)[16],
                                           const char* c) {
  // Reversed, the factor of a row is its write strength, which dots leave out.
  const float factor = role.reverse ? 1 : p.scale;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float dot = 0, own = 0;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const int at = panel_offset(part.row + 8 * i, j) + 2 * part.column;
      const float2 x = unpack<T>(extra[8 * i + j]);
      const float2 y = unpack<T>(*reinterpret_cast<const uint32_t*>(c + at));
      dot += out[4 * j + 2 * i] * x.x + out[4 * j + 2 * i + 1] * x.y;
      own += x.x * y.x + x.y * y.y;
    }
    dot = warp_sum<4>(dot), own = warp_sum<4>(own);
    const int t = token + part.row + 8 * i;
    const int64_t at = ((static_cast<int64_t>(batch) * p.heads + head) * role.slices + slice) * p.tokens + t;
    if (part.lane % 4 != 0 || t >= p.tokens) continue;
    if (role.dots) role.dots[at] = factor * dot;
    if (role.off_diagonal) role.off_diagonal[at] = factor * (dot - diagonal[i] * own);
  }
}

// Checkpoints lie as threads hold them: eight neighbours of registers of all threads, then the next eight.
template <class T, int kPanels>
__device__ __forceinline__ void save_checkpoint(const Part& part, const float (&state)[kPanels][32],
                                                void* checkpoint) {
  uint4* to = static_cast<uint4*>(checkpoint) + part.thread;
#pragma unroll
  for (int i = 0; i < 4 * kPanels; ++i) {
    const float* x = &state[i / 4][i % 4 * 8];
    to[i * kGroupThreads] = {pack<T>(x[0], x[1]), pack<T>(x[2], x[3]), pack<T>(x[4], x[5]),
                             pack<T>(x[6], x[7])};
  }
}

// The sum over the state of its product with the checkpoint, warp by warp.
template <class T, int kPanels>
__device__ __forceinline__ void multiply_checkpoint(const Part& part, const float (&state)[kPanels][32],
                                                    const void* checkpoint, float* products) {
  const uint4* from = static_cast<const uint4*>(checkpoint) + part.thread;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4 * kPanels; ++i) {
    const uint4 packed = from[i * kGroupThreads];
    const uint32_t pairs[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float2 x = unpack<T>(pairs[j]);
      sum += state[i / 4][i % 4 * 8 + 2 * j] * x.x + state[i / 4][i % 4 * 8 + 2 * j + 1] * x.y;
    }
  }
  sum = warp_sum(sum);
  if (part.lane == 0) products[part.warp] = sum;
}

// From registers to device memory.
template <class T>
__device__ __forceinline__ void store_outputs(const Sweep& p, const Role& role, const Part& part, int head,
                                              int slice, int batch, int token, const float (&out)[32]) {
  const CudaRows& y = role.out_rows;
  const int first = slice * kSlice + part.column;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = token + part.row + 8 * i;
    T* const to =
        static_cast<T*>(const_cast<void*>(y.data)) + batch * y.batch + t * y.token + head * y.head + first;
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (t < p.tokens && first + 8 * j < role.width)
        *reinterpret_cast<uint32_t*>(to + 8 * j) = pack<T>(out[4 * j + 2 * i], out[4 * j + 2 * i + 1]);
  }
}

// Adds the outputs of two heads: those of warpgroup 1, rounded, pass through its panels to warpgroup 0. `again`: they
// have before.
constexpr int kReady = 3, kTaken = 4;  // named barriers
template <class T>
__device__ __forceinline__ void sum_heads(const Part& part, int group, bool again, const Shared& shared,
                                          float (&out)[2][32]) {
  char* const panels = shared.out(1);
  if (group == 1) {
    if (again) named_barrier(kTaken, 2 * kGroupThreads);
#pragma unroll
    for (int n = 0; n < 2; ++n) store_rounded<T>(part, out[n], panels + n * kPanelBytes);
    named_arrive(kReady, 2 * kGroupThreads);
    return;
  }
  named_barrier(kReady, 2 * kGroupThreads);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int i = 0; i < 32; i += 2) {
      const char* at =
          panels + n * kPanelBytes + panel_offset(part.row + (i & 2) * 4, i / 4) + 2 * part.column;
      const float2 x = unpack<T>(*reinterpret_cast<const uint32_t*>(at));
      out[n][i] += x.x, out[n][i + 1] += x.y;
    }
  }
  named_arrive(kTaken, 2 * kGroupThreads);
}

}  // namespace
}  // namespace weft::kernels::scalar
