// What the kernels of wide heads share: a warp's part of R, the neurons whose cell a thread runs, and the launch of clusters.
#pragma once

#include <cuda_runtime.h>

#include "ops/cuda/cluster.cuh"
#include "ops/cuda/device.cuh"
#include "ops/rnn/cells.cuh"
#include "ops/rnn/kernel_cuda.h"

namespace weft::kernels::wide {

constexpr int kRows = 8, kWarps = 8, kThreads = kWarps * 32, kStages = 4;

__device__ __forceinline__ void load_four(uint32_t (&x)[4], const void* from) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(shared_address(from)));
}

// kRowTiles x kColumnTiles left operands of a warp, 16 x 16 in 4 registers each, column by column. Beyond kMostKept they are
// in shared memory, spread among the others.
template <int kRowTiles, int kColumnTiles, int kMostKept>
struct Tiles {
  static constexpr int kCount = kRowTiles * kColumnTiles, kKept = kCount < kMostKept ? kCount : kMostKept;
  static constexpr int kShared = kCount - kKept, kAhead = kShared == 0 ? 1 : 3;
  using Shared = uint4[kShared > 0 ? kShared : 1][kWarps][32];
  // How many of the operands before f are in shared memory.
  static constexpr int shared_before(int f) { return f * kShared / kCount; }
  static constexpr bool is_shared(int f) { return shared_before(f) != shared_before(f + 1); }

  uint32_t part[kKept][4];

  // element(m, k, i): two neighbours in a row, register i of operand (m, k)
  template <class Element>
  __device__ void load(Shared& shared, const Element& element) {
#pragma unroll
    for (int k = 0; k < kColumnTiles; ++k)
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const int f = k * kRowTiles + m;
        uint32_t x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = element(m, k, i);
        if (is_shared(f)) {
          shared[shared_before(f)][threadIdx.x / 32][threadIdx.x % 32] = make_uint4(x[0], x[1], x[2], x[3]);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) part[f - shared_before(f)][i] = x[i];
        }
      }
  }

  // sum += tiles x, x [8][16 kColumnTiles] with rows `stride` apart; 16 numbers behind a row must be readable. ready() is
  // called before x is read. What comes from shared memory is fetched ahead, as a warp waits for what its next
  // instruction needs.
  template <class T, class Ready>
  __device__ void multiply(float (&sum)[kRowTiles][4], const Shared& shared, const T* x, int stride,
                           const Ready& ready) const {
    const T* row = x + threadIdx.x % 8 * stride + threadIdx.x % 32 / 8 * 8;
    const auto* mine = &shared[0][threadIdx.x / 32][threadIdx.x % 32];
    uint32_t b[2][4], fetched[kAhead][4];
#pragma unroll
    for (int s = 0; s < kAhead && s < kShared; ++s) load_four(fetched[s], mine + s * kThreads);
    ready();
    load_matrices(b[0], row);
#pragma unroll
    for (int k = 0; k < kColumnTiles; ++k) {
      if (k % 2 == 0 && k + 2 < kColumnTiles) load_matrices(b[(k / 2 + 1) % 2], row + (k + 2) * 16);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        const int f = k * kRowTiles + m, s = shared_before(f);
        const uint32_t b0 = b[k / 2 % 2][k % 2 * 2], b1 = b[k / 2 % 2][k % 2 * 2 + 1];
        if (is_shared(f)) {
          multiply_add<T>(sum[m], fetched[s % kAhead], b0, b1);
          if (s + kAhead < kShared) load_four(fetched[s % kAhead], mine + (s + kAhead) * kThreads);
        } else {
          multiply_add<T>(sum[m], part[f - s], b0, b1);
        }
      }
    }
  }
};

// 4 or 8 bytes from device memory to shared memory.
template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(to)), "l"(from), "n"(kBytes)
               : "memory");
}

template <class X>
__device__ __forceinline__ void write_pair(X* to, const float (&pair)[2]) {
  if constexpr (sizeof(X) == 4)
    *reinterpret_cast<float2*>(to) = make_float2(pair[0], pair[1]);
  else
    *reinterpret_cast<uint32_t*>(to) = pack<X>(pair[0], pair[1]);
}

// The two neurons and the sequence whose cell a thread runs; of 2 kSlice / 16 warps. Lane l of a product's operand has
// the same neurons when row i of it is neuron 2 i and row i + 8 neuron 2 i + 1.
template <int kSlice>
struct Owner {
  static constexpr int kThreads = kSlice * kRows / 2;
  int neuron, row;      // in the slice, in the CTA
  bool active, exists;  // runs a cell; and is a neuron of the head and a sequence of the batch
  int64_t channel, sequence;

  __device__ Owner(const RnnCuda& p, int rank, int64_t first, int rows) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    neuron = warp / 2 * 16 + lane / 4 * 2;
    row = lane % 4 * 2 + warp % 2;
    active = threadIdx.x < kThreads;
    sequence = first + row;
    exists = active && rank * kSlice + neuron < p.width && row < rows;
    channel = blockIdx.y * p.width + rank * kSlice + neuron;
  }
};

// Sequences of the cluster, of which there are at most `most`.
struct Sequences {
  int64_t first;
  int count;

  __device__ Sequences(const RnnCuda& p, int most) : first(int64_t{blockIdx.z} * most) {
    count = static_cast<int>(p.batch - first < most ? p.batch - first : most);
  }
};

// [S, B, H, D] fp32.
template <int kStates, int kSlice>
__device__ __forceinline__ void read_states(float (&s)[kStates][2], const float* from, const RnnCuda& p,
                                            const Owner<kSlice>& own) {
#pragma unroll
  for (int i = 0; i < kStates; ++i) {
    float2 pair = {};
    if (from && own.exists)
      pair = *reinterpret_cast<const float2*>(from + (i * p.batch + own.sequence) * p.heads * p.width +
                                              own.channel);
    s[i][0] = pair.x;
    s[i][1] = pair.y;
  }
}
template <int kStates, int kSlice>
__device__ __forceinline__ void write_states(float* to, const float (&s)[kStates][2], const RnnCuda& p,
                                             const Owner<kSlice>& own) {
  if (!own.exists) return;
#pragma unroll
  for (int i = 0; i < kStates; ++i)
    write_pair(to + (i * p.batch + own.sequence) * p.heads * p.width + own.channel, s[i]);
}

template <int kSlice>
__device__ __forceinline__ bool starts_at(const RnnCuda& p, const Owner<kSlice>& own, int64_t t) {
  return p.starts && own.exists && t < p.tokens && p.starts[own.sequence * p.tokens + t];
}

template <int kCount>
__device__ __forceinline__ void gather(float (&one)[kCount], const float (&x)[kCount][2], int n) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) one[i] = x[i][n];
}
template <int kCount>
__device__ __forceinline__ void scatter(float (&x)[kCount][2], const float (&one)[kCount], int n) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i][n] = one[i];
}

template <class Kernel, class Problem>
CudaStatus launch(Kernel* kernel, int ranks, size_t bytes, const Problem& problem, const RnnCuda& p,
                  void* stream) {
  if (const auto error = allow_shared(kernel, bytes); error != cudaSuccess) return status_of(error);
  auto error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error != cudaSuccess) return status_of(error);
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {static_cast<unsigned>(ranks), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(ranks));
  config.blockDim = kThreads;
  config.dynamicSmemBytes = bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &cluster;
  config.numAttrs = 1;
  int at_once = 0;
  error = cudaOccupancyMaxActiveClusters(&at_once, kernel, &config);
  if (error != cudaSuccess) return status_of(error);
  int most = 1;
  while (most < kRows && p.heads * ((p.batch + most - 1) / most) > at_once) ++most;
  config.gridDim = dim3(static_cast<unsigned>(ranks), static_cast<unsigned>(p.heads),
                        static_cast<unsigned>((p.batch + most - 1) / most));
  return status_of(cudaLaunchKernelEx(&config, kernel, problem, most));
}

// Calls body(Cell{}, T{}, Cut{}): neurons of a CTA, CTAs of a cluster.
template <int kSlice, int kRanks>
struct Cut {};
template <class Body>
CudaStatus with_wide(const RnnCuda& p, const Body& body) {
  return with_matrix_cell<Quick>(p.cell, [&]<class Cell>(Cell cell) {
    const auto typed = [&]<class T>(T type) {
      if (p.width <= 256) return body(cell, type, Cut<32, 8>{});
      if (p.width <= 512) return body(cell, type, Cut<32, 16>{});
      return body(cell, type, Cut<48, 16>{});
    };
    return p.type == CudaType::bf16 ? typed(bf16{}) : typed(fp16{});
  });
}

}  // namespace weft::kernels::wide
