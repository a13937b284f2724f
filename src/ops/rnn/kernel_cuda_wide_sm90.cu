// Heads too wide for one CTA, forward: a cluster has one head and a few sequences, each CTA a slice of the neurons with all
// their gates. Its rows of R stay there for all tokens, in registers and, what is too much, in shared memory, as left
// operands of mma.sync. Every CTA needs all of h: each sends its slice to all others. What an SM receives and the products
// take time, so a cluster takes as few sequences as there are clusters at once.
// Messages are counted by barriers in the receiver's shared memory, and there is no other synchronisation of CTAs: one
// that sends for token t has received everything for t - 1, so all that is sent there was read before.
#include <cuda_runtime.h>

#include "ops/rnn/wide.cuh"

namespace weft::kernels {
namespace {

using namespace wide;

// A group of warps has a gate, and the warps of a group share the columns of R: a warp waits only for the CTAs that send its
// columns. Two buffers of sums: a warp whose columns have arrived may be a token ahead of those that read.
template <class Cell, class T, int kSlice, int kRanks>
struct ForwardShared {
  static constexpr int kGroups = Cell::kRecurrent == 1 ? 1 : 4, kSplits = kWarps / kGroups,
                       kSub = kSlice / 16;
  static constexpr int kWidth = kSlice * kRanks, kStride = row_stride(kWidth), kWaves = kRanks / 8;
  static constexpr int kPart = kWidth / kWaves / kSplits;  // columns of a warp and a wave
  using Part = Tiles<kSub, kWidth / 16 / kSplits, 46, 4, kWaves>;
  T h[2][kRows][kStride];  // of CTA (rank - j) % kRanks at j kSlice
  float sums[2][kSplits][Cell::kRecurrent][kRows * kSlice];
  T x[kStages][Cell::kInput][kRows * kSlice];
  float bias[Cell::kGates][kRows * kSlice];
  typename Part::Shared tiles;
  uint64_t arrived[2][kWaves][kSplits], fetched[kStages];

  // Where column `at` of h is in R.
  __device__ static int column_of(int rank, int at) {
    return (rank + kRanks - at / kSlice) % kRanks * kSlice + at % kSlice;
  }
};

// A warp has 32 cells, 8 neighbouring neurons of a sequence one behind the other. Lane l sends 8 of them, number l % 4, to an
// eighth of the CTAs, the first of these at `there`, the eighth behind it 8 slices on: so what one CTA gets comes from
// neighbouring lanes.
template <int kSlice, int kRanks, class T, int kWaves, int kSplits>
__device__ __forceinline__ void send_neurons(float x, uint32_t there, uint64_t (&arrived)[kWaves][kSplits],
                                             int rank, bool exists) {
  constexpr int kOfWave = kRanks / kWaves;
  const int lane = threadIdx.x % 32;
  const uint32_t pair = pack<T>(x, __shfl_down_sync(0xffffffff, x, 1));
  uint32_t eight[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) eight[i] = __shfl_sync(0xffffffff, pair, lane % 4 * 8 + i * 2);
#pragma unroll
  for (int i = 0; i < kRanks; i += 8) {
    const int ring = i + lane / 4, target = (ring + rank) % kRanks;
    const auto* barrier = &arrived[ring / kOfWave][ring % kOfWave / (kOfWave / kSplits)];
    if (exists)
      send16(address_in(there + i * kSlice * sizeof(T), target), address_in(shared_address(barrier), target),
             eight);
  }
}

template <class Cell, class T, int kSlice, int kRanks, int kCells>
__global__ void __launch_bounds__(kThreads, 1) wide_forward(RnnCuda p, int most) {
  extern __shared__ __align__(16) char memory[];
  using Shared = ForwardShared<Cell, T, kSlice, kRanks>;
  auto& shared = *reinterpret_cast<Shared*>(memory);
  constexpr int kFirst = Cell::kGates - Cell::kInput, kPart = Shared::kPart,
                kApart = Shared::kWidth / Shared::kWaves;
  constexpr int kSub = Shared::kSub, kSaved = Cell::kStates - 1;
  const int rank = static_cast<int>(cluster_rank()), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int gate = warp / Shared::kSplits, split = warp % Shared::kSplits, width = static_cast<int>(p.width);
  const int64_t channels = p.heads * p.width;
  const Sequences sequences(p, most);
  const Owned<kSlice, kCells> own(p, rank, sequences);

  typename Shared::Part tiles;
  const int64_t matrix = (gate * p.heads + blockIdx.y) * width * width;
  tiles.load(
      shared.tiles, static_cast<const T*>(p.recurrent), gate < Cell::kRecurrent ? width : 0,
      [&](int m, int i) { return rank * kSlice + m * 16 + i * 2; },
      [&](int wave, int column) {
        return Column{matrix, Shared::column_of(rank, wave * kApart + split * kPart + column)};
      });
  for (int i = threadIdx.x; i < kRows * Shared::kWidth; i += kThreads) {
    const int row = i / Shared::kWidth, at = Shared::column_of(rank, i % Shared::kWidth);
    const int64_t sequence = sequences.first + row;
    const bool fresh =
        !p.initial || at >= width || row >= sequences.count || (p.starts && p.starts[sequence * p.tokens]);
    shared.h[0][row][i % Shared::kWidth] =
        from_float<T>(fresh ? 0.f : p.initial[sequence * channels + blockIdx.y * p.width + at]);
  }
  for (int i = threadIdx.x; i < Cell::kGates * kRows * kSlice; i += kThreads) {
    const int j = i / (kRows * kSlice), neuron = rank * kSlice + i % kSlice;
    shared.bias[j][i % (kRows * kSlice)] =
        p.bias && neuron < width ? p.bias[j * channels + blockIdx.y * p.width + neuron] : 0.f;
  }
  float states[kCells][Cell::kStates];
  int64_t at[kCells];  // of h
  uint8_t fresh[kCells];
#pragma unroll
  for (int c = 0; c < kCells; ++c) {
    const auto& cell = own.cell[c];
    read_states(states[c], p.initial, p, cell);
    at[c] = cell.sequence * p.tokens * channels + cell.channel;
    fresh[c] = starts_at(p, cell, 0);
  }

  const uint32_t bytes = sequences.count * kPart * sizeof(T);
  if (threadIdx.x == 0) {
    for (auto& buffer : shared.arrived)
      for (auto& wave : buffer)
        for (auto& barrier : wave) {
          arrival_init(&barrier);
          arrival_expect(&barrier, bytes);
        }
    for (auto& barrier : shared.fetched) arrival_init(&barrier);
    arrival_fence();
  }
  __syncthreads();
  cluster_barrier();

  // The last warps, as the first have the cells.
  const int copied = kWarps - 1 - warp;
  const T* input = nullptr;
  if (copied < sequences.count && lane < Cell::kInput && neurons_of<kSlice>(p, rank) > 0)
    input = slice_of<kSlice>(static_cast<const T*>(p.wx), lane, Cell::kInput, p, rank,
                             sequences.first + copied, 0);
  const int token_bytes = sequences.count * Cell::kInput * neurons_of<kSlice>(p, rank) * sizeof(T);
  const auto fetch = [&](int t) {
    if (t >= p.tokens) return;
    auto* barrier = &shared.fetched[t % kStages];
    if (threadIdx.x == 0) arrival_expect(barrier, token_bytes);
    if (!input) return;
    copy_bytes(&shared.x[t % kStages][lane][copied * kSlice], input, neurons_of<kSlice>(p, rank) * sizeof(T),
               barrier);
    input += Cell::kInput * channels;
  };
  for (int t = 0; t < kStages - 1; ++t) fetch(t);
  int there[kCells];
#pragma unroll
  for (int c = 0; c < kCells; ++c) {
    const int first = c * kThreads + warp * 32 + lane % 4 * 8;
    there[c] = shared_address(&shared.h[0][first / kSlice % kRows][first % kSlice + lane / 4 * kSlice]);
    keep(there[c]);
  }

  const int tokens = static_cast<int>(p.tokens);
  for (int t = 0; t < tokens; ++t) {
    const int now = t % 2;
    barrier_wait(&shared.fetched[t % kStages], t / kStages % 2);
    typename Shared::Part::Ahead ahead;
    tiles.fetch(ahead, shared.tiles);
    uint8_t next_fresh[kCells];
#pragma unroll
    for (int c = 0; c < kCells; ++c) next_fresh[c] = starts_at(p, own.cell[c], t + 1);
    float sum[kSub][4];
    tiles.multiply(
        sum, shared.tiles, ahead, &shared.h[now][0][split * kPart], sequences.count, Shared::kStride, kApart,
        [&](int wave) {
          if (t == 0) return;
          uint64_t* barrier = &shared.arrived[now][wave][split];
          barrier_wait(barrier, static_cast<uint32_t>(t - 1) / 2 % 2);
          if (gate == 0 && lane == 0) arrival_expect(barrier, bytes);
        },
        [] {});
    if (gate < Cell::kRecurrent)
#pragma unroll
      for (int m = 0; m < kSub; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          if (lane % 4 * 2 + r < sequences.count)
            *reinterpret_cast<float2*>(
                &shared.sums[now][split][gate][(lane % 4 * 2 + r) * kSlice + m * 16 + lane / 4 * 2]) =
                make_float2(sum[m][r], sum[m][2 + r]);
    __syncthreads();

    float gates[kCells][Cell::kGates];
#pragma unroll
    for (int c = 0; c < kCells; ++c) {
      const auto& cell = own.cell[c];
      if (!cell.warp_has) continue;
#pragma unroll
      for (int j = 0; j < Cell::kGates; ++j) {
        float x = shared.bias[j][cell.index];
        if (j >= kFirst) x += to_float(shared.x[t % kStages][j - kFirst][cell.index]);
        if (j < Cell::kRecurrent)
#pragma unroll
          for (int i = 0; i < Shared::kSplits; ++i) x += shared.sums[now][i][j][cell.index];
        gates[c][j] = x;
      }
      float before[Cell::kStates];
#pragma unroll
      for (int i = 0; i < Cell::kStates; ++i) before[i] = fresh[c] ? 0.f : states[c][i];
      Cell::forward(gates[c], before, nullptr, states[c]);
      if (t + 1 < tokens) {
        send_neurons<kSlice, kRanks, T>(next_fresh[c] || !cell.in_head ? 0.f : states[c][0],
                                        there[c] + (1 - now) * sizeof(shared.h[0]), shared.arrived[1 - now],
                                        rank,
                                        c * kThreads + warp * 32 + lane % 4 * 8 < sequences.count * kSlice);
      }
    }
    fetch(t + kStages - 1);
#pragma unroll
    for (int c = 0; c < kCells; ++c) {
      fresh[c] = next_fresh[c];
      if (!own.cell[c].exists) continue;
      const int64_t here = at[c], channel = own.cell[c].channel;
      at[c] += channels;
      static_cast<T*>(p.h)[here] = from_float<T>(states[c][0]);
      if (!p.keep) continue;
#pragma unroll
      for (int i = 0; i < kSaved; ++i)
        p.states[here * kSaved - (kSaved - 1) * channel + i * channels] = states[c][i + 1];
#pragma unroll
      for (int j = 0; j < Cell::kGates; ++j)
        static_cast<T*>(p.gates)[here * Cell::kGates - (Cell::kGates - 1) * channel + j * channels] =
            from_float<T>(gates[c][j]);
    }
  }
#pragma unroll
  for (int c = 0; c < kCells; ++c) write_states(p.state, states[c], p, own.cell[c]);
  cluster_barrier();  // others may still send here
}

}  // namespace

CudaStatus rnn_forward_wide(const RnnCuda& p, void* stream) {
  return with_wide(p, [&]<class Cell, class T, int kSlice, int kRanks>(Cell, T, Cut<kSlice, kRanks>) {
    return launch<kSlice>(
        [](auto cells) { return wide_forward<Cell, T, kSlice, kRanks, decltype(cells)::value>; }, kRanks,
        sizeof(ForwardShared<Cell, T, kSlice, kRanks>), p, p, stream);
  });
}

}  // namespace weft::kernels
