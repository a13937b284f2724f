// What the kernels of wide heads share: a warp's part of R, the neurons whose cell a thread runs, and the launch of clusters.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "ops/cuda/cluster.cuh"
#include "ops/cuda/hopper.cuh"
#include "ops/rnn/cells.cuh"
#include "ops/rnn/kernel_cuda.h"

namespace weft::kernels::wide {

constexpr int kRows = 8, kWarps = 8, kThreads = kWarps * 32, kStages = 4;

__device__ __forceinline__ void load_four(uint32_t (&x)[4], const void* from) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(shared_address(from)));
}
// kCount of 2 or 4; x stays where `has` is false, which saves the time of the lanes that have nothing.
template <int kCount>
__device__ __forceinline__ void load_some(uint32_t (&x)[4], const void* from, bool has) {
  if constexpr (kCount == 4)
    asm volatile("{.reg .pred p; setp.ne.b32 p, %5, 0; @p ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];}"
                 : "+r"(x[0]), "+r"(x[1]), "+r"(x[2]), "+r"(x[3])
                 : "r"(shared_address(from)), "r"(static_cast<int>(has)));
  else
    asm volatile("{.reg .pred p; setp.ne.b32 p, %3, 0; @p ld.shared.v2.b32 {%0, %1}, [%2];}"
                 : "+r"(x[0]), "+r"(x[1])
                 : "r"(shared_address(from)), "r"(static_cast<int>(has)));
}

// Where rows of `n` numbers begin in shared memory, so that two rows lie in different banks.
constexpr int row_stride(int n) { return (n + 31) / 64 * 64 + 32; }

// A column of R: its matrix and its place there.
struct Column {
  int64_t plane;
  int column;
};

// kRowTiles x kColumnTiles left operands of a warp, 16 x 16 in 4 registers each, column by column. Beyond kMostKept they are
// in shared memory, spread among the others. What they are multiplied with comes in kWaves parts. As both sides of a
// product may have their columns in any order, a lane's are neighbours: of two column tiles together lane l has columns
// 8 (l % 4) to 8 (l % 4) + 7, 4 of each, of the last of an odd number those from 4 (l % 4) on.
template <int kRowTiles, int kColumnTiles, int kMostKept, int kMostAhead, int kWaves = 1>
struct Tiles {
  static constexpr int kOfWave = kColumnTiles / kWaves;
  static constexpr int kCount = kRowTiles * kColumnTiles, kKept = kCount < kMostKept ? kCount : kMostKept;
  static constexpr int kShared = kCount - kKept, kAhead = kShared < kMostAhead ? kShared : kMostAhead,
                       kRing = kAhead > 0 ? kAhead : 1;
  using Shared = uint4[kShared > 0 ? kShared : 1][kWarps][32];
  // Of column k those of rows [first, first + shared_before(k + 1) - shared_before(k)) are in shared memory, others from column
  // to column, as a row's products wait for each other.
  static constexpr int kMostOfColumn = (kShared + kColumnTiles - 1) / kColumnTiles;
  static constexpr int shared_before(int k) { return k * kShared / kColumnTiles; }
  static constexpr int shared_rows(int k, int m) {  // of the rows before m
    const int rows = m - k % (kRowTiles - kMostOfColumn + 1), all = shared_before(k + 1) - shared_before(k);
    return rows < 0 ? 0 : rows < all ? rows : all;
  }
  static constexpr bool is_shared(int k, int m) { return shared_rows(k, m) != shared_rows(k, m + 1); }
  static constexpr int shared_index(int k, int m) { return shared_before(k) + shared_rows(k, m); }

  struct Ahead {
    uint32_t of[kRing][4];
  };

  uint32_t part[kKept][4];

  static constexpr int kPairs = (kOfWave + 1) / 2;
  __device__ static int lane_column(int pair) { return pair * 32 + threadIdx.x % 4 * (paired(pair) ? 8 : 4); }
  static constexpr bool paired(int pair) { return pair * 2 + 1 < kOfWave; }

  // Operand (m, k) is that of rows row(m, lane / 4) and the next. Column c of a wave is that at where(wave, c) in a matrix
  // [width, width], plane numbers behind `from`; zeros outside.
  template <class T, class Row, class Where>
  __device__ void load(Shared& shared, const T* from, int width, const Row& row, const Where& where) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int n = 0; n < kWaves * kPairs; ++n) {
      const auto [plane, first_column] = where(n / kPairs, lane_column(n % kPairs));
#pragma unroll
      for (int half = 0; half < (paired(n % kPairs) ? 2 : 1); ++half)
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m) {
          const int k = n / kPairs * kOfWave + n % kPairs * 2 + half, s = shared_index(k, m);
          const int first = row(m, lane / 4), column = first_column + half * 4;
          uint32_t x[4];
#pragma unroll
          for (int i = 0; i < 4; ++i)
            x[i] = first + i % 2 < width && column < width
                       ? *reinterpret_cast<const uint32_t*>(from + plane + (first + i % 2) * width + column +
                                                            i / 2 * 2)
                       : 0;
          if (is_shared(k, m)) {
            shared[s][threadIdx.x / 32][lane] = make_uint4(x[0], x[1], x[2], x[3]);
          } else {
#pragma unroll
            for (int i = 0; i < 4; ++i) part[k * kRowTiles + m - s][i] = x[i];
          }
        }
    }
  }

  // The first operands from shared memory, which may be fetched while x is waited for.
  __device__ void fetch(Ahead& ahead, const Shared& shared) const {
#pragma unroll
    for (int s = 0; s < kAhead; ++s) load_four(ahead.of[s], &shared[s][threadIdx.x / 32][threadIdx.x % 32]);
  }

  // sum = tiles x, x [8][16 kOfWave] for each wave, rows `stride` apart, of which the first `rows` count; waves `apart`.
  // ready(wave) is called before x is read, beside() amid the products; `ahead` was fetched. What comes from shared memory is
  // fetched ahead, as a warp waits for what its next instruction needs.
  template <class T, class Ready, class Beside>
  __device__ void multiply(float (&sum)[kRowTiles][4], const Shared& shared, Ahead& ahead, const T* x,
                           int rows, int stride, int apart, const Ready& ready, const Beside& beside) const {
    const int mine_row = threadIdx.x % 32 / 4;
    const bool has = mine_row < rows;
    const T* row = x + mine_row * stride;
    const auto* mine = &shared[0][threadIdx.x / 32][threadIdx.x % 32];
    constexpr int kChains =
        kRowTiles <= 2 ? 2 : 1;  // of sums, as a product waits for the one before it in its chain
    float chain[kChains][kRowTiles][4] = {};
    uint32_t b[2][4] = {};
    auto& fetched = ahead.of;
    const auto fetch = [&](int n) {
      const T* from = row + n / kPairs * apart + lane_column(n % kPairs);
      if (paired(n % kPairs))
        load_some<4>(b[n % 2], from, has);
      else
        load_some<2>(b[n % 2], from, has);
    };
    ready(0);
    fetch(0);
#pragma unroll
    for (int n = 0; n < kWaves * kPairs; ++n) {
      const int wave = n / kPairs, pair = n % kPairs;
      if (pair + 1 < kPairs) fetch(n + 1);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int k = wave * kOfWave + pair * 2 + half;
        if (pair * 2 + half < kOfWave)
#pragma unroll
          for (int m = 0; m < kRowTiles; ++m) {
            const int s = shared_index(k, m);
            const uint32_t b0 = b[n % 2][half * 2], b1 = b[n % 2][half * 2 + 1];
            if (is_shared(k, m)) {
              multiply_add<T>(chain[k % kChains][m], fetched[s % kRing], b0, b1);
              if (s + kAhead < kShared) load_four(fetched[s % kRing], mine + (s + kAhead) * kThreads);
            } else {
              multiply_add<T>(chain[k % kChains][m], part[k * kRowTiles + m - s], b0, b1);
            }
          }
        if (half == 0 && pair + 1 == kPairs && wave + 1 < kWaves) {
          ready(wave + 1);
          fetch(n + 1);
        }
      }
      if (n == kWaves * kPairs / 4) beside();
    }
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        sum[m][i] = kChains == 2 ? chain[0][m][i] + chain[kChains - 1][m][i] : chain[0][m][i];
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

// The kCells neurons and sequences whose cells a thread runs, neurons side by side.
struct CellPlace {
  int index, neuron, row;          // row kSlice + neuron; in the slice, in the CTA
  bool warp_has;                   // the warp has cells
  bool in_head, in_batch, exists;  // neuron, sequence, both
  int64_t channel, sequence;
};
template <int kSlice, int kCells>
struct Owned {
  CellPlace cell[kCells];

  __device__ Owned(const RnnCuda& p, int rank, const Sequences& sequences) {
#pragma unroll
    for (int c = 0; c < kCells; ++c) {
      auto& mine = cell[c];
      const int index = c * kThreads + static_cast<int>(threadIdx.x);
      mine.index = index;
      mine.neuron = index % kSlice;
      mine.row = index / kSlice;
      mine.warp_has = index / 32 * 32 < sequences.count * kSlice;
      mine.in_head = rank * kSlice + mine.neuron < p.width;
      mine.in_batch = mine.row < sequences.count;
      mine.exists = mine.in_head && mine.in_batch;
      mine.channel = blockIdx.y * p.width + rank * kSlice + mine.neuron;
      mine.sequence = sequences.first + mine.row;
    }
  }
};

// [S, B, H, D] fp32.
template <int kStates>
__device__ __forceinline__ void read_states(float (&s)[kStates], const float* from, const RnnCuda& p,
                                            const CellPlace& at) {
#pragma unroll
  for (int i = 0; i < kStates; ++i)
    s[i] = from && at.exists ? from[(i * p.batch + at.sequence) * p.heads * p.width + at.channel] : 0.f;
}
template <int kStates>
__device__ __forceinline__ void write_states(float* to, const float (&s)[kStates], const RnnCuda& p,
                                             const CellPlace& at) {
  if (!at.exists) return;
#pragma unroll
  for (int i = 0; i < kStates; ++i) to[(i * p.batch + at.sequence) * p.heads * p.width + at.channel] = s[i];
}

// Not 0 where token t begins a document; a byte, as asking whether it is 0 would wait for it.
__device__ __forceinline__ uint8_t starts_at(const RnnCuda& p, const CellPlace& at, int64_t t) {
  uint8_t begins = 0;
  if (p.starts && at.exists && t < p.tokens)
    begins = reinterpret_cast<const uint8_t*>(p.starts)[at.sequence * p.tokens + t];
  return begins;
}

// A number that is kept, not computed anew where it is needed.
__device__ __forceinline__ void keep(int& x) { asm volatile("" : "+r"(x)); }

// Where the slice of a CTA begins in block `block` of token t of a [B, T, blocks, H, D] tensor.
template <int kSlice, class X>
__device__ __forceinline__ const X* slice_of(const X* tensor, int block, int blocks, const RnnCuda& p,
                                             int rank, int64_t sequence, int64_t t) {
  return tensor + (((sequence * p.tokens + t) * blocks + block) * p.heads + blockIdx.y) * p.width +
         rank * kSlice;
}
// Neurons that the slice of a CTA has.
template <int kSlice>
__device__ __forceinline__ int neurons_of(const RnnCuda& p, int rank) {
  const int left = static_cast<int>(p.width) - rank * kSlice;
  return left < 0 ? 0 : left < kSlice ? left : kSlice;
}

// kernel_of(n) is the kernel whose threads run n cells each, 1 or 2: two only where the sequences of a cluster need it.
template <int kSlice, class KernelOf, class Problem>
CudaStatus launch(const KernelOf& kernel_of, int ranks, size_t bytes, const Problem& problem,
                  const RnnCuda& p, void* stream) {
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
  const auto allow = [&](auto* kernel) {
    const auto error = allow_shared(kernel, bytes);
    return error == cudaSuccess
               ? cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1)
               : error;
  };
  auto* kernel = kernel_of(std::integral_constant<int, 1>{});
  if (const auto error = allow(kernel); error != cudaSuccess) return status_of(error);
  int at_once = 0;
  if (const auto error = cudaOccupancyMaxActiveClusters(&at_once, kernel, &config); error != cudaSuccess)
    return status_of(error);
  // As few sequences as the clusters that come one after the other anyway leave.
  const auto clusters = [&](int64_t of) { return p.heads * ((p.batch + of - 1) / of); };
  const int64_t turns = at_once > 0 ? (clusters(kRows) + at_once - 1) / at_once : 1;
  int most = 1;
  while (most < kRows && clusters(most) > turns * at_once) ++most;
  if constexpr (kSlice * kRows > kThreads)
    if (most * kSlice > kThreads) {
      kernel = kernel_of(std::integral_constant<int, 2>{});
      if (const auto error = allow(kernel); error != cudaSuccess) return status_of(error);
    }
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
