// What a thread of a fused kernel holds and moves: its part of R, of h and of the gates, and where those lie.
#pragma once

#include <cuda_runtime.h>

#include "ops/cuda/device.cuh"
#include "ops/rnn/kernel_cuda.h"

namespace weft::kernels::fused {

constexpr int kRows = 8, kStages = 4, kPad = 8;

__device__ __forceinline__ void copy_async8(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

// Which numbers a thread has: of its warp's 16 neurons two neighbours, of the 8 sequences two neighbours. Element
// 2 n + r is neuron n and sequence r, the order of mma.sync's sums when row i of the product is neuron 2 i and row i + 8
// is neuron 2 i + 1.
struct Place {
  int neuron, row;  // the first of two
  int64_t batch;    // of row 0 of the CTA
  bool has_neurons, has_row[2];

  __device__ explicit Place(const RnnCuda& p)
      : neuron(threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 * 2),
        row(threadIdx.x % 4 * 2),
        batch(int64_t{blockIdx.y} * kRows) {
    has_neurons = neuron < p.width;
    has_row[0] = batch + row < p.batch;
    has_row[1] = batch + row + 1 < p.batch;
  }
  __device__ bool has(int r) const { return has_neurons && has_row[r]; }
};

// The rows of R that belong to the warp's 16 neurons, as left operands.
template <class T, int kGates, int kWidth>
struct Matrix {
  uint32_t part[kGates][kWidth / 16][4];

  // recurrent [gates, H, rows, columns]
  __device__ void load(const RnnCuda& p, int neuron) {
    const int column = threadIdx.x % 4 * 2;
    const int width = static_cast<int>(p.width);
#pragma unroll
    for (int j = 0; j < kGates; ++j)
#pragma unroll
      for (int k = 0; k < kWidth / 16; ++k)
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int row = neuron + i % 2, at = k * 16 + column + i / 2 * 8;
          part[j][k][i] = row < width && at < width
                              ? *reinterpret_cast<const uint32_t*>(
                                    static_cast<const T*>(p.recurrent) +
                                    ((j * p.heads + blockIdx.x) * p.width + row) * p.width + at)
                              : 0;
        }
  }
  // sums[j] += part[j] x, x [8][kWidth] with rows `stride` apart; of gate j `apart` numbers on. The chains of the gates
  // alternate, and operands are fetched one turn ahead, as a warp waits for what its next instruction needs.
  __device__ void multiply(float (&sums)[kGates][4], const T* x, int stride, int apart) const {
    const T* row = x + threadIdx.x % 8 * stride + threadIdx.x % 32 / 8 * 8;
    constexpr int kTurns = kWidth / 32;
    uint32_t b[2][kGates][4];
    const auto fetch = [&](int turn) {
#pragma unroll
      for (int j = 0; j < kGates; ++j)
        if (j == 0 || apart) load_matrices(b[turn % 2][j], row + j * apart + turn * 32);
    };
    fetch(0);
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      if (turn + 1 < kTurns) fetch(turn + 1);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int j = 0; j < kGates; ++j) {
          const auto& mine = b[turn % 2][apart ? j : 0];
          multiply_add<T>(sums[j], part[j][turn * 2 + half], mine[half * 2], mine[half * 2 + 1]);
        }
    }
  }
};

// What a thread copies to shared memory for every token: of tensors [B, T, n, H, D] 16 bytes of one sequence of the CTA,
// blocks [n][8][kWidth + kPad]. Addresses move by one token at a time, as computing them anew takes longer than all else.
template <class X, int kWidth>
struct Copier {
  static constexpr int kVector = 16 / sizeof(X), kVectors = kWidth / kVector, kThreads = kWidth * 2;
  static constexpr int kParts = kThreads / (kVectors * kRows);  // threads that share the n
  const X* from = nullptr;                                      // null: nothing there, blocks stay zero
  int64_t channels, stride;
  int block;  // where in a block

  __device__ Copier(const void* tensor, const RnnCuda& p, const Place& at, int64_t token, int n)
      : channels(p.heads * p.width), stride(n * channels) {
    const int column = threadIdx.x % kVectors * kVector, row = threadIdx.x / kVectors % kRows;
    block = row * (kWidth + kPad) + column;
    if (column < p.width && at.batch + row < p.batch)
      from = static_cast<const X*>(tensor) + ((at.batch + row) * p.tokens + token) * stride +
             blockIdx.x * p.width + column;
  }
  __device__ static int part() { return threadIdx.x / (kVectors * kRows); }
  __device__ void copy(X* to, int n) const {
    if (!from) return;
#pragma unroll
    for (int j = 0; j < n; j += kParts)
      if (kParts == 1 || j + part() < n)
        copy_async16(to + (j + part()) * kRows * (kWidth + kPad) + block, from + (j + part()) * channels);
  }
  __device__ void move(int tokens) {
    if (from) from += tokens * stride;
  }
};

template <class T>
__device__ __forceinline__ float2 pair_at(const T* x) {
  if constexpr (sizeof(T) == 4)
    return *reinterpret_cast<const float2*>(x);
  else
    return unpack<T>(*reinterpret_cast<const uint32_t*>(x));
}

// Reads the thread's four numbers of a block [8][kWidth + kPad].
template <int kWidth, class X>
__device__ __forceinline__ void read_four(float (&four)[4], const X* block, const Place& at) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float2 pair = pair_at(block + (at.row + r) * (kWidth + kPad) + at.neuron);
    four[r] = pair.x;
    four[2 + r] = pair.y;
  }
}

// Writes the thread's numbers of sequence r.
template <class X>
__device__ __forceinline__ void write_pair(X* to, const float (&four)[4], int r) {
  if constexpr (sizeof(X) == 4)
    *reinterpret_cast<float2*>(to) = make_float2(four[r], four[2 + r]);
  else
    *reinterpret_cast<uint32_t*>(to) = pack<X>(four[r], four[2 + r]);
}

// An fp32 [S, B, H, D] tensor at the thread's numbers; zeros when it is null.
template <int kStates>
__device__ __forceinline__ void read_states(float (&s)[kStates][4], const float* from, const RnnCuda& p,
                                            const Place& at) {
  const int64_t channels = p.heads * p.width;
#pragma unroll
  for (int i = 0; i < kStates; ++i)
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float2 pair = {};
      if (from && at.has(r))
        pair = *reinterpret_cast<const float2*>(from + (i * p.batch + at.batch + at.row + r) * channels +
                                                blockIdx.x * p.width + at.neuron);
      s[i][r] = pair.x;
      s[i][2 + r] = pair.y;
    }
}
template <int kStates>
__device__ __forceinline__ void write_states(float* to, const float (&s)[kStates][4], const RnnCuda& p,
                                             const Place& at) {
  const int64_t channels = p.heads * p.width;
#pragma unroll
  for (int i = 0; i < kStates; ++i)
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (at.has(r))
        write_pair(to + (i * p.batch + at.batch + at.row + r) * channels + blockIdx.x * p.width + at.neuron,
                   s[i], r);
}

// Element e of every row of `x`, and back.
template <int kCount>
__device__ __forceinline__ void gather(float (&one)[kCount], const float (&x)[kCount][4], int e) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) one[i] = x[i][e];
}
template <int kCount>
__device__ __forceinline__ void scatter(float (&x)[kCount][4], const float (&one)[kCount], int e) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i][e] = one[i];
}
template <int kCount>
__device__ __forceinline__ void clear(float (&x)[kCount][4], const bool (&rows)[2]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      if (rows[e % 2]) x[i][e] = 0;
}

// Which of the thread's sequences begin a document at a token.
struct Starts {
  const bool* row[2];

  __device__ Starts(const RnnCuda& p, const Place& at) {
#pragma unroll
    for (int r = 0; r < 2; ++r)
      row[r] = p.starts && at.has_row[r] ? p.starts + (at.batch + at.row + r) * p.tokens : nullptr;
  }
  __device__ void read(bool (&fresh)[2], int64_t t) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) fresh[r] = row[r] && row[r][t];
  }
};

// Where the thread's numbers of a [B, T, n, H, D] tensor go; `row` from its first sequence to its second.
template <class X>
struct Output {
  X* to;
  int64_t channels, stride, row;

  __device__ Output(void* tensor, const RnnCuda& p, const Place& at, int64_t token, int n)
      : channels(p.heads * p.width), stride(n * channels), row(p.tokens * stride) {
    to = static_cast<X*>(tensor) + ((at.batch + at.row) * p.tokens + token) * stride + blockIdx.x * p.width +
         at.neuron;
  }
  template <int kCount>
  __device__ void write(const float (&x)[kCount][4], int begin, int count, const Place& at) const {
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (at.has(r))
#pragma unroll
        for (int j = 0; j < count; ++j) write_pair(to + r * row + j * channels, x[begin + j], r);
  }
  __device__ void move(int tokens) { to += tokens * stride; }
};

// What the forward pass saves of a thread's numbers, for itself in the backward pass: so it lies together, threads one
// behind the other, without those that have no sequence. 4 gates are two registers each, states 4 floats.
template <class Cell>
struct Saved {
  static constexpr int kStates = Cell::kStates - 1;
  uint2* gates;
  float4* states;
  int64_t stride;  // threads of a token

  __device__ Saved(const RnnCuda& p, const Place& at, int64_t token, int warps) {
    const int64_t pairs = (p.batch + 1) / 2, here = at.batch / 2, left = pairs - here;
    const int mine = static_cast<int>(left < kRows / 2 ? left : kRows / 2);
    stride = p.heads * warps * 8 * pairs;
    const int64_t thread = token * stride + blockIdx.x * warps * 8 * pairs + here * warps * 8 +
                           threadIdx.x / 4 * mine + threadIdx.x % 4;
    gates = static_cast<uint2*>(p.gates) + thread * Cell::kGates;
    states = reinterpret_cast<float4*>(p.states) + thread * kStates;
  }
  template <class T>
  __device__ void write(const float (&g)[Cell::kGates][4], const float (&s)[Cell::kStates][4]) const {
    uint2 packed[Cell::kGates];
#pragma unroll
    for (int j = 0; j < Cell::kGates; ++j)
      packed[j] = make_uint2(pack<T>(g[j][0], g[j][2]), pack<T>(g[j][1], g[j][3]));
    if constexpr (Cell::kGates % 2 == 0) {
#pragma unroll
      for (int j = 0; j < Cell::kGates; j += 2)
        reinterpret_cast<uint4*>(gates)[j / 2] =
            make_uint4(packed[j].x, packed[j].y, packed[j + 1].x, packed[j + 1].y);
    } else {
#pragma unroll
      for (int j = 0; j < Cell::kGates; ++j) gates[j] = packed[j];
    }
#pragma unroll
    for (int i = 0; i < kStates; ++i)
      states[i] = make_float4(s[i + 1][0], s[i + 1][1], s[i + 1][2], s[i + 1][3]);
  }
  __device__ void move(int tokens) {
    gates += tokens * stride * Cell::kGates;
    states += tokens * stride * kStates;
  }
};

template <class T, int kCount>
__device__ __forceinline__ void unpack_gates(float (&g)[kCount][4], const uint2 (&packed)[kCount]) {
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const float2 first = unpack<T>(packed[j].x), second = unpack<T>(packed[j].y);
    g[j][0] = first.x, g[j][2] = first.y, g[j][1] = second.x, g[j][3] = second.y;
  }
}

template <int kCount>
__device__ __forceinline__ void set_state(float (&s)[kCount][4], int i, float4 x) {
  s[i][0] = x.x, s[i][1] = x.y, s[i][2] = x.z, s[i][3] = x.w;
}

// Zeros in shared memory where nothing will be copied to.
template <int kThreads>
__device__ __forceinline__ void clear_shared(void* memory, size_t bytes) {
  for (size_t i = threadIdx.x * 4; i < bytes; i += kThreads * 4)
    *reinterpret_cast<uint32_t*>(static_cast<char*>(memory) + i) = 0;
}

template <int kWidth>
constexpr int threads_for() {
  return kWidth * 2;
}

}  // namespace weft::kernels::fused
