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

// Two groups of warps share the gates, and the warps of a group the columns of R: a warp has the same columns for all of its
// rows, which spares reading h once for each gate, and waits only for the CTAs that send these. Two buffers of sums: a warp
// whose columns have arrived may be a token ahead of those that read.
template <class Cell, class T, int kSlice, int kRanks>
struct ForwardShared {
  static constexpr int kGroups = Cell::kRecurrent == 1 ? 1 : 2, kSplits = kWarps / kGroups;
  static constexpr int kGates = (Cell::kRecurrent + kGroups - 1) / kGroups, kSub = kSlice / 16;  // of a group
  static constexpr int kWidth = kSlice * kRanks, kStride = kWidth + 8;
  using Part = Tiles<kGates * kSub, kWidth / 16 / kSplits, 48>;
  T h[2][kRows][kStride];
  float sums[2][kSplits][Cell::kRecurrent][kRows][kSlice + 4];
  uint32_t x[kStages][Cell::kInput][Owner<kSlice>::kThreads];
  typename Part::Shared tiles;
  uint64_t arrived[2][kSplits];
};

template <class Cell, class T, int kSlice, int kRanks>
__global__ void __launch_bounds__(kThreads, 1) wide_forward(RnnCuda p, int most) {
  extern __shared__ __align__(16) char memory[];
  using Shared = ForwardShared<Cell, T, kSlice, kRanks>;
  auto& shared = *reinterpret_cast<Shared*>(memory);
  constexpr int kFirst = Cell::kGates - Cell::kInput, kPart = Shared::kWidth / Shared::kSplits;
  const int rank = static_cast<int>(cluster_rank()), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int group = warp / Shared::kSplits, split = warp % Shared::kSplits, width = static_cast<int>(p.width);
  constexpr int kSub = Shared::kSub, kRowTiles = Shared::kGates * kSub;
  const int64_t channels = p.heads * p.width;
  const Sequences sequences(p, most);
  const Owner<kSlice> own(p, rank, sequences.first, sequences.count);

  typename Shared::Part tiles;
  tiles.load(shared.tiles, [&](int m, int k, int i) -> uint32_t {
    const int row = rank * kSlice + m % kSub * 16 + lane / 4 * 2 + i % 2,
              gate = group * Shared::kGates + m / kSub,
              at = split * kPart + k * 16 + lane % 4 * 2 + i / 2 * 8;
    if (row >= width || at >= width || gate >= Cell::kRecurrent) return 0;
    return *reinterpret_cast<const uint32_t*>(static_cast<const T*>(p.recurrent) +
                                              ((gate * p.heads + blockIdx.y) * p.width + row) * p.width + at);
  });
  for (int i = threadIdx.x; i < kRows * Shared::kWidth; i += kThreads) {
    const int row = i / Shared::kWidth, at = i % Shared::kWidth;
    const int64_t sequence = sequences.first + row;
    const bool fresh =
        !p.initial || at >= width || row >= sequences.count || (p.starts && p.starts[sequence * p.tokens]);
    shared.h[0][row][at] =
        from_float<T>(fresh ? 0.f : p.initial[sequence * channels + blockIdx.y * p.width + at]);
  }
  float bias[Cell::kGates][2] = {}, states[Cell::kStates][2];
  if (p.bias && own.exists)
#pragma unroll
    for (int j = 0; j < Cell::kGates; ++j)
#pragma unroll
      for (int n = 0; n < 2; ++n) bias[j][n] = p.bias[j * channels + own.channel + n];
  read_states(states, p.initial, p, own);

  const uint32_t bytes = sequences.count * kPart * sizeof(T);
  if (threadIdx.x == 0) {
    for (auto& buffer : shared.arrived)
      for (auto& barrier : buffer) {
        arrival_init(&barrier);
        arrival_expect(&barrier, bytes);
      }
    arrival_fence();
  }
  __syncthreads();
  cluster_barrier();

  const auto copy = [&](int64_t t) {
    if (own.exists && t < p.tokens) {
      const T* x =
          static_cast<const T*>(p.wx) + (own.sequence * p.tokens + t) * Cell::kInput * channels + own.channel;
#pragma unroll
      for (int j = 0; j < Cell::kInput; ++j)
        copy_async<4>(&shared.x[t % kStages][j][threadIdx.x], x + j * channels);
    }
    copy_async_commit();
  };
  for (int t = 0; t < kStages; ++t) copy(t);
  bool fresh = starts_at(p, own, 0);

  for (int64_t t = 0; t < p.tokens; ++t) {
    const int now = static_cast<int>(t % 2);
    const bool next_fresh = starts_at(p, own, t + 1);
    float sum[kRowTiles][4] = {};
    tiles.multiply(sum, shared.tiles, &shared.h[now][0][split * kPart], Shared::kStride, [&] {
      if (t == 0) return;
      uint64_t* barrier = &shared.arrived[now][split];
      arrival_wait(barrier, static_cast<uint32_t>((t - 1) / 2 % 2));
      if (group == 0 && lane == 0) arrival_expect(barrier, bytes);
    });
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m)
#pragma unroll
      for (int r = 0; r < 2; ++r)
        if (lane % 4 * 2 + r < sequences.count && group * Shared::kGates + m / kSub < Cell::kRecurrent)
          *reinterpret_cast<float2*>(&shared.sums[now][split][group * Shared::kGates + m / kSub]
                                                 [lane % 4 * 2 + r][m % kSub * 16 + lane / 4 * 2]) =
              make_float2(sum[m][r], sum[m][2 + r]);
    copy_async_wait<kStages - 1>();
    __syncthreads();
    if (!own.active) continue;

    float gates[Cell::kGates][2];
#pragma unroll
    for (int j = 0; j < Cell::kGates; ++j) {
      float2 x = {};
      if (j >= kFirst && own.exists) x = unpack<T>(shared.x[t % kStages][j - kFirst][threadIdx.x]);
      if (j < Cell::kRecurrent) {
#pragma unroll
        for (int i = 0; i < Shared::kSplits; ++i) {
          const float2 sum = *reinterpret_cast<const float2*>(&shared.sums[now][i][j][own.row][own.neuron]);
          x.x += sum.x;
          x.y += sum.y;
        }
      }
      gates[j][0] = x.x + bias[j][0];
      gates[j][1] = x.y + bias[j][1];
    }
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      float g[Cell::kGates], before[Cell::kStates], after[Cell::kStates];
      gather(g, gates, n);
      gather(before, states, n);
#pragma unroll
      for (int i = 0; i < Cell::kStates; ++i) before[i] = fresh ? 0.f : before[i];
      Cell::forward(g, before, nullptr, after);
      scatter(gates, g, n);
      scatter(states, after, n);
    }
    if (t + 1 < p.tokens) {  // 8 neurons from 4 lanes, each of which sends them to a quarter of the CTAs
      const uint32_t pair = next_fresh || !own.exists ? 0 : pack<T>(states[0][0], states[0][1]);
      uint32_t eight[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) eight[i] = __shfl_sync(0xffffffff, pair, lane / 16 * 16 + i * 4 + lane % 4);
      const uint32_t to = shared_address(&shared.h[1 - now][own.row][rank * kSlice + own.neuron / 8 * 8]);
      const uint32_t barrier = shared_address(&shared.arrived[1 - now][rank / (kRanks / Shared::kSplits)]);
#pragma unroll
      for (int i = 0; i < kRanks; i += 4) {
        const uint32_t target = (i + lane / 4 % 4 + rank) % kRanks;  // not all to the same at once
        if (own.row < sequences.count) send16(address_in(to, target), address_in(barrier, target), eight);
      }
    }
    copy(t + kStages);
    fresh = next_fresh;
    if (!own.exists) continue;
    const int64_t token = own.sequence * p.tokens + t;
    write_pair(static_cast<T*>(p.h) + token * channels + own.channel, states[0]);
    if (!p.keep) continue;
#pragma unroll
    for (int i = 1; i < Cell::kStates; ++i)
      write_pair(p.states + (token * (Cell::kStates - 1) + i - 1) * channels + own.channel, states[i]);
#pragma unroll
    for (int j = 0; j < Cell::kGates; ++j)
      write_pair(static_cast<T*>(p.gates) + (token * Cell::kGates + j) * channels + own.channel, gates[j]);
  }
  write_states(p.state, states, p, own);
  cluster_barrier();  // others may still send here
}

}  // namespace

CudaStatus rnn_forward_wide(const RnnCuda& p, void* stream) {
  return with_wide(p, [&]<class Cell, class T, int kSlice, int kRanks>(Cell, T, Cut<kSlice, kRanks>) {
    return launch(wide_forward<Cell, T, kSlice, kRanks>, kRanks,
                  sizeof(ForwardShared<Cell, T, kSlice, kRanks>), p, p, stream);
  });
}

}  // namespace weft::kernels
