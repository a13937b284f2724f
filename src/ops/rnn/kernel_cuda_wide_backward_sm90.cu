// Heads too wide for one CTA, backward: clusters as in the forward pass, R transposed. The gradient of h of all neurons gets
// a part from the gates of every slice: each CTA sends its parts, in the type of wx, to the owners of the neurons, who add
// them in the order of ranks.
#include <cuda_runtime.h>

#include "ops/rnn/wide.cuh"

namespace weft::kernels {
namespace {

using namespace wide;

// Warp w multiplies the rows of inputs [w, w + 1) kWidth / 8 with the gates of this CTA. Two buffers of gates: what this CTA
// waits for comes from one warp of each, so another of its own may still be reading those of the token before.
template <class Cell, class T, int kSlice, int kRanks>
struct BackwardShared {
  static constexpr int kWidth = kSlice * kRanks, kStride = Cell::kRecurrent * kSlice + 8,
                       kSaved = Cell::kStates - 1;
  using Part = Tiles<kWidth / 16 / kWarps, Cell::kRecurrent * kSlice / 16, 45>;
  uint32_t parts[2][kRanks][kSlice / 16][32][2];  // received: lanes and sequences as in a product
  T dgates[2][kRows][kStride];
  uint32_t gates[kStages][Cell::kGates][Owner<kSlice>::kThreads];
  uint32_t dh[kStages][Owner<kSlice>::kThreads];
  uint32_t h[kStages][Owner<kSlice>::kThreads];  // of the token before, as the next
  float2 states[kStages][kSaved > 0 ? kSaved : 1][Owner<kSlice>::kThreads];
  typename Part::Shared tiles;
  uint64_t arrived[2];
};

template <class Cell, class T, int kSlice, int kRanks>
__global__ void __launch_bounds__(kThreads, 1) wide_backward(RnnCudaGradient q, int most) {
  extern __shared__ __align__(16) char memory[];
  using Shared = BackwardShared<Cell, T, kSlice, kRanks>;
  auto& shared = *reinterpret_cast<Shared*>(memory);
  constexpr int kRowTiles = Shared::kWidth / 16 / kWarps, kSub = kSlice / 16;
  const RnnCuda& p = q.forward;
  const int rank = static_cast<int>(cluster_rank()), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int width = static_cast<int>(p.width);
  const int64_t channels = p.heads * p.width;
  const Sequences sequences(p, most);
  const Owner<kSlice> own(p, rank, sequences.first, sequences.count);

  typename Shared::Part tiles;
  tiles.load(shared.tiles, [&](int m, int k, int i) -> uint32_t {
    const int row = (warp * kRowTiles + m) * 16 + lane / 4 * 2 + i % 2, gate = k / kSub;
    const int at = rank * kSlice + k % kSub * 16 + lane % 4 * 2 + i / 2 * 8;
    if (row >= width || at >= width) return 0;
    return *reinterpret_cast<const uint32_t*>(static_cast<const T*>(p.recurrent) +
                                              ((gate * p.heads + blockIdx.y) * p.width + row) * p.width + at);
  });
  float after[Cell::kStates][2] = {}, ds[Cell::kStates][2];
  read_states(ds, q.dstate, p, own);
  if (own.exists) {
    const int64_t token = own.sequence * p.tokens + p.tokens - 1;
    const float2 h = unpack<T>(
        *reinterpret_cast<const uint32_t*>(static_cast<const T*>(p.h) + token * channels + own.channel));
    after[0][0] = h.x;
    after[0][1] = h.y;
#pragma unroll
    for (int i = 1; i < Cell::kStates; ++i)
#pragma unroll
      for (int n = 0; n < 2; ++n)
        after[i][n] = p.states[(token * (Cell::kStates - 1) + i - 1) * channels + own.channel + n];
  }

  const int row_pairs = (sequences.count + 1) / 2;
  const uint32_t bytes = row_pairs * (sizeof(shared.parts[0]) / (kRows / 2));
  if (threadIdx.x == 0) {
#pragma unroll
    for (auto& barrier : shared.arrived) {
      arrival_init(&barrier);
      arrival_expect(&barrier, bytes);
    }
    arrival_fence();
  }
  __syncthreads();
  cluster_barrier();

  const auto copy = [&](int64_t t) {
    if (own.exists && t >= 0) {
      const int64_t token = own.sequence * p.tokens + t, stage = t % kStages;
      const T* gates = static_cast<const T*>(p.gates) + token * Cell::kGates * channels + own.channel;
#pragma unroll
      for (int j = 0; j < Cell::kGates; ++j)
        copy_async<4>(&shared.gates[stage][j][threadIdx.x], gates + j * channels);
      copy_async<4>(&shared.dh[stage][threadIdx.x],
                    static_cast<const T*>(q.dh) + token * channels + own.channel);
      if (t >= 1) {
        copy_async<4>(&shared.h[stage][threadIdx.x],
                      static_cast<const T*>(p.h) + (token - 1) * channels + own.channel);
#pragma unroll
        for (int i = 0; i < Shared::kSaved; ++i)
          copy_async<8>(&shared.states[stage][i][threadIdx.x],
                        p.states + ((token - 1) * Shared::kSaved + i) * channels + own.channel);
      }
    }
    copy_async_commit();
  };
  for (int i = 1; i < kStages; ++i) copy(p.tokens - i);
  bool fresh = false;  // token t + 1 begins a document

  // Number of the message: 0 for token T - 1.
  for (int64_t step = 0; step <= p.tokens; ++step) {
    const int64_t t = p.tokens - 1 - step;
    const int now = static_cast<int>(step % 2);  // buffer of what token t sends
    const bool here_fresh = t >= 0 && starts_at(p, own, t);
    if (step) {
      const int last = 1 - now;
      arrival_wait(&shared.arrived[last], static_cast<uint32_t>((step - 1) / 2 % 2));
      if (threadIdx.x == 0) arrival_expect(&shared.arrived[last], bytes);
      if (own.active) {
        float2 total = {};
#pragma unroll
        for (int source = 0; source < kRanks; ++source) {
          const float2 part = unpack<T>(shared.parts[last][source][warp / 2][lane][warp % 2]);
          total.x += part.x;
          total.y += part.y;
        }
        ds[0][0] += total.x;
        ds[0][1] += total.y;
        if (fresh)
#pragma unroll
          for (int i = 0; i < Cell::kStates; ++i) ds[i][0] = ds[i][1] = 0;
      }
    }
    if (t < 0) break;
    fresh = here_fresh;
    copy(t - (kStages - 1));
    copy_async_wait<kStages - 1>();
    if (own.active) {
      const int stage = static_cast<int>(t % kStages);
      float before[Cell::kStates][2], gates[Cell::kGates][2], dgates[Cell::kGates][2];
      float2 dh = {};
      if (t) {
        const float2 h = unpack<T>(shared.h[stage][threadIdx.x]);
        before[0][0] = h.x;
        before[0][1] = h.y;
#pragma unroll
        for (int i = 1; i < Cell::kStates; ++i) {
          const float2 pair = shared.states[stage][i - 1][threadIdx.x];
          before[i][0] = pair.x;
          before[i][1] = pair.y;
        }
      } else {
        read_states(before, p.initial, p, own);
      }
#pragma unroll
      for (int j = 0; j < Cell::kGates; ++j) {
        const float2 pair = unpack<T>(shared.gates[stage][j][threadIdx.x]);
        gates[j][0] = pair.x;
        gates[j][1] = pair.y;
      }
      dh = unpack<T>(shared.dh[stage][threadIdx.x]);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float g[Cell::kGates], s[Cell::kStates], a[Cell::kStates], d[Cell::kStates], dg[Cell::kGates],
            d_before[Cell::kStates];
        gather(g, gates, n);
        gather(s, before, n);
        gather(a, after, n);
        gather(d, ds, n);
#pragma unroll
        for (int i = 0; i < Cell::kStates; ++i) s[i] = fresh ? 0.f : s[i];
        d[0] += n ? dh.y : dh.x;
        Cell::backward(g, s, nullptr, a, d, dg, d_before, nullptr);
#pragma unroll
        for (int j = 0; j < Cell::kGates; ++j) dg[j] = own.exists ? dg[j] : 0.f;
        scatter(dgates, dg, n);
        scatter(ds, d_before, n);
#pragma unroll
        for (int i = 0; i < Cell::kStates; ++i) after[i][n] = before[i][n];
      }
      const int64_t token = own.sequence * p.tokens + t;
#pragma unroll
      for (int j = 0; j < Cell::kGates; ++j) {
        if (j < Cell::kRecurrent)
          write_pair(&shared.dgates[now][own.row][j * kSlice + own.neuron], dgates[j]);
        if (own.exists)
          write_pair(static_cast<T*>(q.dgates) + (token * Cell::kGates + j) * channels + own.channel,
                     dgates[j]);
      }
    }
    __syncthreads();
    float sum[kRowTiles][4] = {};
    tiles.multiply(sum, shared.tiles, &shared.dgates[now][0][0], Shared::kStride, [] {});
#pragma unroll
    for (int m = 0; m < kRowTiles; ++m) {
      if (lane % 4 >= row_pairs) continue;
      const int tile = warp * kRowTiles + m;
      const uint32_t to = shared_address(&shared.parts[now][rank][tile % kSub][lane][0]);
      send8(address_in(to, tile / kSub), address_in(shared_address(&shared.arrived[now]), tile / kSub),
            pack<T>(sum[m][0], sum[m][2]), pack<T>(sum[m][1], sum[m][3]));
    }
  }
  write_states(q.dinitial, ds, p, own);
  cluster_barrier();
}

}  // namespace

CudaStatus rnn_backward_wide(const RnnCudaGradient& q, void* stream) {
  return with_wide(q.forward, [&]<class Cell, class T, int kSlice, int kRanks>(Cell, T, Cut<kSlice, kRanks>) {
    return launch(wide_backward<Cell, T, kSlice, kRanks>, kRanks,
                  sizeof(BackwardShared<Cell, T, kSlice, kRanks>), q, q.forward, stream);
  });
}

}  // namespace weft::kernels
