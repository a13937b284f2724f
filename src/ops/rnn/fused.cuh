// What a thread of a fused kernel holds and moves: its part of R, of h and of the gates, and where those lie.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "ops/cuda/device.cuh"
#include "ops/rnn/kernel_cuda.h"

namespace weft::kernels::fused {

constexpr int kStages = 4, kPad = 8;

template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  if constexpr (kBytes == 16)
    copy_async16(to, from);
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from), "n"(kBytes)
                 : "memory");
}

// Which numbers a thread has, of its warp's 16 neurons and the CTA's kRows sequences. A product has 8 columns: with 8
// sequences a thread takes all of its sums, two neurons of two sequences. With 4 or 2 the columns repeat, and each of the
// threads that have the same sums takes one neuron, of two sequences or one: the time of a token is then mostly that of
// the product. Element kSequences n + r is neuron n and sequence r; row i of the product is neuron 2 i and row i + 8
// neuron 2 i + 1.
template <int kRowsOfCta>
struct Place {
  static constexpr int kRows = kRowsOfCta;
  static constexpr int kNeurons = kRows == 8 ? 2 : 1, kSequences = kRows == 2 ? 1 : 2;
  static constexpr int kElements = kNeurons * kSequences;
  int neuron, row;  // the first
  int64_t batch;    // of row 0 of the CTA
  bool has_neurons, has_row[kSequences];

  __device__ explicit Place(const RnnCuda& p) : batch(int64_t{blockIdx.y} * kRows) {
    const int quarter = threadIdx.x % 4;
    neuron = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 * 2 + (kNeurons == 1 ? quarter / 2 : 0);
    row = quarter * kSequences % kRows;
    has_neurons = neuron < p.width;
#pragma unroll
    for (int r = 0; r < kSequences; ++r) has_row[r] = batch + row + r < p.batch;
  }
  __device__ bool has(int r) const { return has_neurons && has_row[r]; }
  // The sequence of a product's column.
  __device__ static int sequence_of(int column) { return kRows == 2 ? column / 2 % 2 : column % kRows; }
  // The thread's numbers of the sums that it holds.
  __device__ static void take(float (&x)[kElements], const float (&sums)[4]) {
#pragma unroll
    for (int e = 0; e < kElements; ++e) x[e] = kNeurons == 1 && threadIdx.x % 4 >= 2 ? sums[2 + e] : sums[e];
  }
};

// The rows of R that belong to the warp's 16 neurons, as left operands.
template <class T, int kGates, int kWidth>
struct Matrix {
  uint32_t part[kGates][kWidth / 16][4];

  // recurrent [gates, H, rows, columns]
  __device__ void load(const RnnCuda& p) {
    const int column = threadIdx.x % 4 * 2, neuron = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 * 2;
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
  // sums[j] += part[j] x, x [sequences][kWidth] with rows `stride` apart, of which `row` is that of the lane's column; of
  // gate j `apart` numbers on. The chains of the gates alternate, and operands are fetched one turn ahead, as a warp waits
  // for what its next instruction needs. beside() is called amid the products, which leave most issue slots free.
  template <class Beside>
  __device__ void multiply(float (&sums)[kGates][4], const T* x, int row_of_lane, int stride, int apart,
                           const Beside& beside) const {
    const T* row = x + row_of_lane * stride + threadIdx.x % 32 / 8 * 8;
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
      if (turn == 0) beside();
    }
  }
};

// What a thread copies to shared memory for every token: of tensors [B, T, n, H, D] 16 bytes of one sequence of the CTA,
// blocks [n][kRows][kWidth + kPad]. Addresses move by one token at a time, as computing them anew takes longer than all
// else.
template <class X, int kWidth, int kRows>
struct Copier {
  static constexpr int kVector = 16 / sizeof(X), kVectors = kWidth / kVector, kThreads = kWidth * 2;
  static constexpr int kParts = kThreads / (kVectors * kRows);  // threads that share the n
  const X* from = nullptr;                                      // null: nothing there, blocks stay zero
  int64_t channels, stride;
  int block;  // where in a block

  __device__ Copier(const void* tensor, const RnnCuda& p, int64_t batch, int64_t token, int n)
      : channels(p.heads * p.width), stride(n * channels) {
    const int column = threadIdx.x % kVectors * kVector, row = threadIdx.x / kVectors % kRows;
    block = row * (kWidth + kPad) + column;
    if (column < p.width && batch + row < p.batch)
      from = static_cast<const X*>(tensor) + ((batch + row) * p.tokens + token) * stride +
             blockIdx.x * p.width + column;
  }
  __device__ static int part() { return threadIdx.x / (kVectors * kRows); }
  __device__ void copy(X* to, int n) const {
    if (!from) return;
#pragma unroll
    for (int j = 0; j < n; j += kParts)
      if (j + part() < n)
        copy_async16(to + (j + part()) * kRows * (kWidth + kPad) + block, from + (j + part()) * channels);
  }
  __device__ void move(int tokens) {
    if (from) from += tokens * stride;
  }
};

// The thread's numbers of sequence r: one neuron, or two neighbours.
template <class At, class X>
__device__ __forceinline__ void read_row(float (&x)[At::kElements], const X* from, int r) {
  if constexpr (At::kNeurons == 1) {
    x[r] = to_float(*from);
  } else {
    float2 pair;
    if constexpr (sizeof(X) == 4)
      pair = *reinterpret_cast<const float2*>(from);
    else
      pair = unpack<X>(*reinterpret_cast<const uint32_t*>(from));
    x[r] = pair.x;
    x[At::kSequences + r] = pair.y;
  }
}
template <class At, class X>
__device__ __forceinline__ void write_row(X* to, const float (&x)[At::kElements], int r) {
  if constexpr (At::kNeurons == 1)
    *to = from_float<X>(x[r]);
  else if constexpr (sizeof(X) == 4)
    *reinterpret_cast<float2*>(to) = make_float2(x[r], x[At::kSequences + r]);
  else
    *reinterpret_cast<uint32_t*>(to) = pack<X>(x[r], x[At::kSequences + r]);
}

// Reads the thread's numbers of a block [kRows][kWidth + kPad].
template <int kWidth, class At, class X>
__device__ __forceinline__ void read_block(float (&x)[At::kElements], const X* block, const At& at) {
#pragma unroll
  for (int r = 0; r < At::kSequences; ++r)
    read_row<At>(x, block + (at.row + r) * (kWidth + kPad) + at.neuron, r);
}

// An fp32 [S, B, H, D] tensor at the thread's numbers; zeros when it is null.
template <int kStates, class At>
__device__ __forceinline__ void read_states(float (&s)[kStates][At::kElements], const float* from,
                                            const RnnCuda& p, const At& at) {
  const int64_t channels = p.heads * p.width;
#pragma unroll
  for (int i = 0; i < kStates; ++i) {
#pragma unroll
    for (int e = 0; e < At::kElements; ++e) s[i][e] = 0;
#pragma unroll
    for (int r = 0; r < At::kSequences; ++r)
      if (from && at.has(r))
        read_row<At>(
            s[i], from + (i * p.batch + at.batch + at.row + r) * channels + blockIdx.x * p.width + at.neuron,
            r);
  }
}
template <int kStates, class At>
__device__ __forceinline__ void write_states(float* to, const float (&s)[kStates][At::kElements],
                                             const RnnCuda& p, const At& at) {
  const int64_t channels = p.heads * p.width;
#pragma unroll
  for (int i = 0; i < kStates; ++i)
#pragma unroll
    for (int r = 0; r < At::kSequences; ++r)
      if (at.has(r))
        write_row<At>(
            to + (i * p.batch + at.batch + at.row + r) * channels + blockIdx.x * p.width + at.neuron, s[i],
            r);
}

// Element e of every row of `x`, and back.
template <int kCount, int kElements>
__device__ __forceinline__ void gather(float (&one)[kCount], const float (&x)[kCount][kElements], int e) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) one[i] = x[i][e];
}
template <int kCount, int kElements>
__device__ __forceinline__ void scatter(float (&x)[kCount][kElements], const float (&one)[kCount], int e) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i][e] = one[i];
}
template <int kCount, int kElements, int kSequences>
__device__ __forceinline__ void clear(float (&x)[kCount][kElements], const bool (&rows)[kSequences]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i)
#pragma unroll
    for (int e = 0; e < kElements; ++e)
      if (rows[e % kSequences]) x[i][e] = 0;
}

// Which of the thread's sequences begin a document at a token.
template <class At>
struct Starts {
  const bool* row[At::kSequences];

  __device__ Starts(const RnnCuda& p, const At& at) {
#pragma unroll
    for (int r = 0; r < At::kSequences; ++r)
      row[r] = p.starts && at.has_row[r] ? p.starts + (at.batch + at.row + r) * p.tokens : nullptr;
  }
  __device__ void read(bool (&fresh)[At::kSequences], int64_t t) const {
#pragma unroll
    for (int r = 0; r < At::kSequences; ++r) fresh[r] = row[r] && row[r][t];
  }
};

// Where the thread's numbers of a [B, T, n, H, D] tensor go; `row` from its first sequence to its second.
template <class X, class At>
struct Output {
  X* to;
  int64_t channels, stride, row;

  __device__ Output(void* tensor, const RnnCuda& p, const At& at, int64_t token, int n)
      : channels(p.heads * p.width), stride(n * channels), row(p.tokens * stride) {
    to = static_cast<X*>(tensor) + ((at.batch + at.row) * p.tokens + token) * stride + blockIdx.x * p.width +
         at.neuron;
  }
  template <int kCount>
  __device__ void write(const float (&x)[kCount][At::kElements], int begin, int count, const At& at) const {
#pragma unroll
    for (int r = 0; r < At::kSequences; ++r)
      if (at.has(r))
#pragma unroll
        for (int j = 0; j < count; ++j) write_row<At>(to + r * row + j * channels, x[begin + j], r);
  }
  __device__ void move(int tokens) { to += tokens * stride; }
};

// What the forward pass saves of a thread's numbers, for itself in the backward pass: so it lies together, threads one
// behind the other, without those that have no sequence. The states without h, and the gates, unless there is but one,
// which h tells. kVectors registers or groups of them hold the gates of a thread.
template <class T, class Cell, class At>
struct Saved {
  static constexpr int kElements = At::kElements, kStates = Cell::kStates - 1;
  static constexpr int kGates = Cell::kGates == 1 ? 0 : Cell::kGates;
  using Vector = std::conditional_t<kElements == 1, uint2, uint4>;
  static constexpr int kWords = sizeof(Vector) / 4, kVectors = kGates * kElements / 2 / kWords;
  struct alignas(4 * kElements) State {
    float of[kElements];
  };
  Vector* gates;
  State* states;
  int64_t stride;  // threads of a token

  __device__ Saved(const RnnCuda& p, const At& at, int64_t token, int warps) {
    constexpr int kPairs = At::kRows / 2;
    const int64_t pairs = (p.batch + 1) / 2, here = at.batch / 2, left = pairs - here;
    const int mine = static_cast<int>(left < kPairs ? left : kPairs), quarter = threadIdx.x % 4;
    const int of_pair = warps * (32 / kElements);  // threads
    stride = p.heads * of_pair * pairs;
    const int64_t thread = token * stride + (blockIdx.x * pairs + here) * of_pair +
                           (threadIdx.x / 4 * (4 / kPairs) + quarter / kPairs) * mine + quarter % kPairs;
    gates = static_cast<Vector*>(p.gates) + thread * kVectors;
    states = reinterpret_cast<State*>(p.states) + thread * kStates;
  }
  __device__ void write(const float (&g)[Cell::kGates][kElements],
                        const float (&s)[Cell::kStates][kElements]) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      alignas(Vector) uint32_t words[kWords];
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        const int n = (v * kWords + w) * 2;
        words[w] = pack<T>(g[n / kElements][n % kElements], g[(n + 1) / kElements][(n + 1) % kElements]);
      }
      gates[v] = *reinterpret_cast<const Vector*>(words);
    }
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      State state;
#pragma unroll
      for (int e = 0; e < kElements; ++e) state.of[e] = s[i + 1][e];
      states[i] = state;
    }
  }
  // Vector v of a thread's gates.
  __device__ static void unpack_gates(float (&g)[Cell::kGates][kElements], const Vector& vector, int v) {
    const auto* words = reinterpret_cast<const uint32_t*>(&vector);
#pragma unroll
    for (int w = 0; w < kWords; ++w) {
      const int n = (v * kWords + w) * 2;
      const float2 pair = unpack<T>(words[w]);
      g[n / kElements][n % kElements] = pair.x;
      g[(n + 1) / kElements][(n + 1) % kElements] = pair.y;
    }
  }
  __device__ void move(int tokens) {
    gates += tokens * stride * kVectors;
    states += tokens * stride * kStates;
  }
};

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
