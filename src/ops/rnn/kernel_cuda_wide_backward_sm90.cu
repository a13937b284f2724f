// Heads too wide for one CTA, backward: clusters as in the forward pass, R transposed. The gradient of h of all neurons gets
// a part from the gates of every slice: each CTA sends its parts, in the type of wx, to the owners of the neurons, who add
// them in a fixed order.
#include <cuda_runtime.h>

#include "ops/rnn/wide.cuh"

namespace weft::kernels {
namespace {

using namespace wide;

// Warp w multiplies the rows of inputs [w, w + 1) kWidth / 8 with the gates of this CTA, the last 32 after the others, which
// are sent meanwhile. Two buffers of gates: what this CTA waits for comes from one warp of each, so another of its own may
// still be reading those of the token before.
template <class Cell, class T, int kSlice, int kRanks>
struct BackwardShared {
  static constexpr int kCells = kRows * kSlice, kSaved = Cell::kStates - 1;
  struct Stage {
    T gates[Cell::kGates][kCells], dh[kCells], h[kCells];  // h and the states are those of the token before
    float states[kSaved > 0 ? kSaved : 1][kCells];
  };
  static constexpr int kWidth = kSlice * kRanks, kStride = row_stride(Cell::kGates * kSlice);
  static constexpr int kRowTiles = kWidth / 16 / kWarps, kEarly = kRowTiles > 4 ? kRowTiles - 2 : 0,
                       kLate = kRowTiles - kEarly, kColumnTiles = Cell::kRecurrent * kSlice / 16;
  using Early = Tiles<(kEarly > 0 ? kEarly : 2), kColumnTiles, 28, 4>;
  using Late = Tiles<kLate, kColumnTiles, (kEarly > 0 ? 14 : 45), 3>;
  T parts[2][kRanks][kCells];  // received
  T dgates[2][kRows][kStride];
  Stage stages[kStages];
  typename Early::Shared early;
  typename Late::Shared late;
  uint64_t arrived[2], fetched[kStages];
};

// Sends sums of 32 inputs, two row tiles whose row i is input 4 i, or 4 i + 2 in the second, and row i + 8 the next, to
// their owners: a lane has 8 inputs of one sequence.
template <class T, int kSlice>
__device__ __forceinline__ void send_sums(const float (&first)[4], const float (&second)[4], int input,
                                          int count, T* parts, uint64_t* barrier) {
  const int lane = threadIdx.x % 32, odd = lane / 4 % 2, row = lane % 4 * 2 + odd;
  const uint32_t even_column[2] = {pack<T>(first[0], first[2]), pack<T>(second[0], second[2])};
  const uint32_t odd_column[2] = {pack<T>(first[1], first[3]), pack<T>(second[1], second[3])};
  uint32_t eight[4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t mine = odd ? odd_column[i] : even_column[i];
    const uint32_t other = __shfl_xor_sync(0xffffffff, odd ? even_column[i] : odd_column[i], 4);
    eight[i] = odd ? other : mine;
    eight[2 + i] = odd ? mine : other;
  }
  const int at = input + lane / 8 * 8, target = at / kSlice;
  if (row < count)
    send16(address_in(shared_address(&parts[row * kSlice + at % kSlice]), target),
           address_in(shared_address(barrier), target), eight);
}

template <class Cell, class T, int kSlice, int kRanks, int kCells>
__global__ void __launch_bounds__(kThreads, 1) wide_backward(RnnCudaGradient q, int most) {
  extern __shared__ __align__(16) char memory[];
  using Shared = BackwardShared<Cell, T, kSlice, kRanks>;
  using Stage = typename Shared::Stage;
  auto& shared = *reinterpret_cast<Shared*>(memory);
  constexpr int kRowTiles = Shared::kRowTiles, kEarly = Shared::kEarly, kLate = Shared::kLate,
                kSaved = Shared::kSaved;
  constexpr int kCellsOfCta = Shared::kCells;
  static_assert(Cell::kGates + 2 + kSaved <= 32 && Cell::kGates * kSlice / 8 <= 32);
  const RnnCuda& p = q.forward;
  const int rank = static_cast<int>(cluster_rank()), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int width = static_cast<int>(p.width), tokens = static_cast<int>(p.tokens);
  const int64_t channels = p.heads * p.width;
  const Sequences sequences(p, most);
  const Owned<kSlice, kCells> own(p, rank, sequences);

  typename Shared::Early early;
  typename Shared::Late late;
  const auto load = [&](auto& tiles, auto& in_shared, int before) {
    tiles.load(
        in_shared, static_cast<const T*>(p.recurrent), width,
        [&](int m, int i) { return (warp * kRowTiles + before + m / 2 * 2) * 16 + i * 4 + m % 2 * 2; },
        [&](int, int column) {
          return Column{(column / kSlice * p.heads + blockIdx.y) * width * width,
                        rank * kSlice + column % kSlice};
        });
  };
  if constexpr (kEarly > 0) load(early, shared.early, 0);
  load(late, shared.late, kEarly);
  float after[kCells][Cell::kStates], ds[kCells][Cell::kStates];
  uint8_t follows[kCells];  // token t + 1 begins a document
#pragma unroll
  for (int c = 0; c < kCells; ++c) {
    const auto& cell = own.cell[c];
    const int64_t at = (cell.sequence + 1) * p.tokens * channels - channels + cell.channel;
    read_states(ds[c], q.dstate, p, cell);
#pragma unroll
    for (int i = 0; i < Cell::kStates; ++i)
      after[c][i] = !cell.exists ? 0.f
                    : i == 0     ? to_float(static_cast<const T*>(p.h)[at])
                                 : p.states[at * kSaved - (kSaved - 1) * cell.channel + (i - 1) * channels];
    follows[c] = 0;
  }
  const uint32_t bytes = sequences.count * kRanks * kSlice * sizeof(T);
  if (threadIdx.x == 0) {
#pragma unroll
    for (auto& barrier : shared.arrived) {
      arrival_init(&barrier);
      arrival_expect(&barrier, bytes);
    }
    for (auto& barrier : shared.fetched) arrival_init(&barrier);
    arrival_fence();
  }
  __syncthreads();
  cluster_barrier();

  // The last warps, as the first have the cells: lanes fetch gates, dh, h and states of a sequence.
  const int copied = kWarps - 1 - warp;
  const char* input = nullptr;
  int input_bytes = neurons_of<kSlice>(p, rank) * static_cast<int>(sizeof(T)), input_stride = 0;
  if (copied < sequences.count && input_bytes && lane < Cell::kGates + 2 + kSaved) {
    const auto begin = [&](const auto* tensor, int block, int blocks, int t) {
      input_stride = static_cast<int>(blocks * channels * sizeof(*tensor));
      input = reinterpret_cast<const char*>(
          slice_of<kSlice>(tensor, block, blocks, p, rank, sequences.first + copied, t));
    };
    if (lane < Cell::kGates) {
      begin(static_cast<const T*>(p.gates), lane, Cell::kGates, tokens - 1);
    } else if (lane < Cell::kGates + 2) {
      begin(static_cast<const T*>(lane == Cell::kGates ? q.dh : p.h), 0, 1,
            tokens - 1 - (lane - Cell::kGates));
    } else {
      begin(p.states, lane - Cell::kGates - 2, kSaved, tokens - 2);
      input_bytes *= 4 / sizeof(T);
    }
  }
  const int in_stage = lane < Cell::kGates + 2
                           ? (lane * kCellsOfCta + copied * kSlice) * static_cast<int>(sizeof(T))
                           : static_cast<int>(offsetof(Stage, states)) +
                                 ((lane - Cell::kGates - 2) * kCellsOfCta + copied * kSlice) * 4;
  const int first_bytes = sequences.count * neurons_of<kSlice>(p, rank) * (Cell::kGates + 1) * sizeof(T),
            more_bytes = sequences.count * neurons_of<kSlice>(p, rank) * (sizeof(T) + kSaved * 4);
  const auto fetch = [&](int step) {
    const int t = tokens - 1 - step;
    if (t < 0) return;
    auto& stage = shared.stages[step % kStages];
    auto* barrier = &shared.fetched[step % kStages];
    if (threadIdx.x == 0) arrival_expect(barrier, first_bytes + (t ? more_bytes : 0));
    if (!input || (t == 0 && lane > Cell::kGates)) return;
    copy_bytes(reinterpret_cast<char*>(&stage) + in_stage, input, input_bytes, barrier);
    input -= input_stride;
  };
  for (int step = 0; step < kStages; ++step) fetch(step);
  // Gradients of the gates go to device memory by the same warps.
  constexpr int kVectors = kSlice / 8;
  T* written = nullptr;
  if (copied < sequences.count && lane < Cell::kGates * kVectors &&
      rank * kSlice + lane % kVectors * 8 < p.width)
    written = static_cast<T*>(q.dgates) +
              (((sequences.first + copied + 1) * p.tokens - 1) * Cell::kGates + lane / kVectors) * channels +
              blockIdx.y * p.width + rank * kSlice + lane % kVectors * 8;
  const int64_t written_stride = Cell::kGates * channels;
  int in_dgates[kCells];
#pragma unroll
  for (int c = 0; c < kCells; ++c) {
    in_dgates[c] = own.cell[c].row % kRows * Shared::kStride + own.cell[c].neuron;
    keep(in_dgates[c]);
  }

  // Number of the message: 0 for token T - 1.
  for (int step = 0; step <= tokens; ++step) {
    const int t = tokens - 1 - step, now = step % 2, last = 1 - now;  // buffer of what token t sends
    if (t >= 0) barrier_wait(&shared.fetched[step % kStages], step / kStages % 2);
    uint8_t fresh[kCells];
#pragma unroll
    for (int c = 0; c < kCells; ++c) fresh[c] = t < 0 ? 0 : starts_at(p, own.cell[c], t);
    if (step) {
      barrier_wait(&shared.arrived[last], static_cast<uint32_t>(step - 1) / 2 % 2);
      if (threadIdx.x == 0) arrival_expect(&shared.arrived[last], bytes);
#pragma unroll
      for (int c = 0; c < kCells; ++c) {
        const auto& cell = own.cell[c];
        if (!cell.warp_has) continue;
        float sums[4] = {};
#pragma unroll
        for (int source = 0; source < kRanks; ++source)
          sums[source % 4] += to_float(shared.parts[last][source][cell.index]);
        ds[c][0] += (sums[0] + sums[1]) + (sums[2] + sums[3]);
        if (follows[c])
#pragma unroll
          for (int i = 0; i < Cell::kStates; ++i) ds[c][i] = 0;
      }
    }
    if (t < 0) break;
#pragma unroll
    for (int c = 0; c < kCells; ++c) {
      const auto& cell = own.cell[c];
      if (!cell.warp_has) continue;
      const auto& stage = shared.stages[step % kStages];
      float before[Cell::kStates], fed[Cell::kStates], gates[Cell::kGates], dgates[Cell::kGates],
          d[Cell::kStates];
      if (t) {
        before[0] = to_float(stage.h[cell.index]);
#pragma unroll
        for (int i = 1; i < Cell::kStates; ++i) before[i] = stage.states[i - 1][cell.index];
      } else {
        read_states(before, p.initial, p, cell);
      }
#pragma unroll
      for (int j = 0; j < Cell::kGates; ++j) gates[j] = to_float(stage.gates[j][cell.index]);
      follows[c] = fresh[c];
#pragma unroll
      for (int i = 0; i < Cell::kStates; ++i) {
        fed[i] = fresh[c] ? 0.f : before[i];
        d[i] = ds[c][i];
      }
      d[0] += to_float(stage.dh[cell.index]);
      Cell::backward(gates, fed, nullptr, after[c], d, dgates, ds[c], nullptr);
#pragma unroll
      for (int i = 0; i < Cell::kStates; ++i) after[c][i] = before[i];
#pragma unroll
      for (int j = 0; j < Cell::kGates; ++j)
        (&shared.dgates[now][0][0])[in_dgates[c] + j * kSlice] = from_float<T>(cell.exists ? dgates[j] : 0.f);
    }
    typename Shared::Early::Ahead ahead;
    typename Shared::Late::Ahead late_ahead;
    if constexpr (kEarly > 0)
      early.fetch(ahead, shared.early);
    else
      late.fetch(late_ahead, shared.late);
    __syncthreads();
    const auto multiply = [&](auto& sum, const auto& tiles, const auto& in_shared, auto& ahead,
                              const auto& beside) {
      tiles.multiply(
          sum, in_shared, ahead, &shared.dgates[now][0][0], sequences.count, Shared::kStride, 0, [](int) {},
          beside);
    };
    const auto send = [&](const float(&first)[4], const float(&second)[4], int tile) {
      send_sums<T, kSlice>(first, second, (warp * kRowTiles + tile) * 16, sequences.count,
                           shared.parts[now][rank], &shared.arrived[now]);
    };
    float late_sum[kLate][4];
    if constexpr (kEarly > 0) {
      float sum[kEarly][4];
      multiply(sum, early, shared.early, ahead, [] {});
      late.fetch(late_ahead, shared.late);
      multiply(late_sum, late, shared.late, late_ahead, [&] {
#pragma unroll
        for (int m = 0; m < kEarly; m += 2) send(sum[m], sum[m + 1], m);
      });
    } else {
      multiply(late_sum, late, shared.late, late_ahead, [] {});
    }
#pragma unroll
    for (int m = 0; m < kLate; m += 2) send(late_sum[m], late_sum[m + 1], kEarly + m);
    fetch(step + kStages);
    if (written) {
      *reinterpret_cast<uint4*>(written) = *reinterpret_cast<const uint4*>(
          &shared.dgates[now][copied][lane / kVectors * kSlice + lane % kVectors * 8]);
      written -= written_stride;
    }
  }
#pragma unroll
  for (int c = 0; c < kCells; ++c) write_states(q.dinitial, ds[c], p, own.cell[c]);
  cluster_barrier();
}

}  // namespace

CudaStatus rnn_backward_wide(const RnnCudaGradient& q, void* stream) {
  return with_wide(q.forward, [&]<class Cell, class T, int kSlice, int kRanks>(Cell, T, Cut<kSlice, kRanks>) {
    return launch<kSlice>(
        [](auto cells) { return wide_backward<Cell, T, kSlice, kRanks, decltype(cells)::value>; }, kRanks,
        sizeof(BackwardShared<Cell, T, kSlice, kRanks>), q, q.forward, stream);
  });
}

}  // namespace weft::kernels
