// Heads too wide for one CTA: a cluster has one head and 8 sequences, each CTA a slice of the neurons with all their
// gates. Its rows of R stay there for all tokens, in registers and, what is too much, in shared memory, as left operands
// of mma.sync.
//   forward   every CTA needs all of h: each sends its slice to all others
//   backward  dh of all neurons gets a part from the gates of every slice: each CTA sends its parts, in the type of wx, to
//             the owners of the neurons, who add them in the order of ranks
// What an SM receives is the limit, so a cluster takes as few sequences as there are clusters at once.
// Messages are counted by a barrier in the receiver's shared memory, and there is no other synchronisation of CTAs: one
// that sends for token t has received everything for t - 1, so all that is sent there was read before.
#include <cuda_runtime.h>

#include "ops/cuda/cluster.cuh"
#include "ops/cuda/device.cuh"
#include "ops/rnn/cells.cuh"
#include "ops/rnn/kernel_cuda.h"

namespace weft::kernels {
namespace {

constexpr int kRows = 8, kWarps = 8, kThreads = kWarps * 32, kStages = 4;
constexpr int kMostFragments = 45;  // left operands of 16 x 16 in a thread's registers, 4 registers each

__device__ __forceinline__ void load_four(uint32_t (&x)[4], const void* from) {
  asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(shared_address(from)));
}

// kRowTiles x kColumnTiles left operands of a warp. Some columns are in shared memory, spread among the others.
template <int kRowTiles, int kColumnTiles>
struct Tiles {
  static constexpr int kMost = kMostFragments / kRowTiles;
  static constexpr int kKept = kColumnTiles < kMost ? kColumnTiles : kMost;
  static constexpr int kShared = kColumnTiles - kKept;
  using Shared = uint4[kShared > 0 ? kShared : 1][kRowTiles][kWarps][32];
  // How many of the columns before k are in shared memory.
  static constexpr int shared_before(int k) { return k * kShared / kColumnTiles; }
  static constexpr bool is_shared(int k) { return shared_before(k) != shared_before(k + 1); }

  uint32_t part[kKept][kRowTiles][4];

  // element(m, k, i): two neighbours in a row, register i of operand (m, k)
  template <class Element>
  __device__ void load(Shared& shared, const Element& element) {
#pragma unroll
    for (int k = 0; k < kColumnTiles; ++k)
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m) {
        uint32_t x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = element(m, k, i);
        if (is_shared(k)) {
          shared[shared_before(k)][m][threadIdx.x / 32][threadIdx.x % 32] =
              make_uint4(x[0], x[1], x[2], x[3]);
        } else {
#pragma unroll
          for (int i = 0; i < 4; ++i) part[k - shared_before(k)][m][i] = x[i];
        }
      }
  }

  // sum += tiles x, x [8][16 kColumnTiles] with rows `stride` apart; 16 numbers behind a row must be readable. What comes
  // from shared memory is fetched a turn ahead, as a warp waits for what its next instruction needs.
  template <class T>
  __device__ void multiply(float (&sum)[kRowTiles][4], const Shared& shared, const T* x, int stride) const {
    const T* row = x + threadIdx.x % 8 * stride + threadIdx.x % 32 / 8 * 8;
    uint32_t b[2][4], fetched[2][kRowTiles][4];
    const auto fetch = [&](int k) {
      if (k % 2 == 0) load_matrices(b[k / 2 % 2], row + k * 16);
      if (is_shared(k))
#pragma unroll
        for (int m = 0; m < kRowTiles; ++m)
          load_four(fetched[k % 2][m], &shared[shared_before(k)][m][threadIdx.x / 32][threadIdx.x % 32]);
    };
    fetch(0);
#pragma unroll
    for (int k = 0; k < kColumnTiles; ++k) {
      if (k + 1 < kColumnTiles) fetch(k + 1);
#pragma unroll
      for (int m = 0; m < kRowTiles; ++m)
        if (is_shared(k))
          multiply_add<T>(sum[m], fetched[k % 2][m], b[k / 2 % 2][k % 2 * 2], b[k / 2 % 2][k % 2 * 2 + 1]);
        else
          multiply_add<T>(sum[m], part[k - shared_before(k)][m], b[k / 2 % 2][k % 2 * 2],
                          b[k / 2 % 2][k % 2 * 2 + 1]);
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

// Forward: warps share the rows of the gates and, where these are too few, parts of h.
template <class Cell, class T, int kSlice, int kRanks>
struct ForwardShared {
  static constexpr int kGroups = Cell::kRecurrent == 1 ? 1 : 4,
                       kSplits = kWarps / kGroups;  // one gate a group
  static constexpr int kWidth = kSlice * kRanks, kStride = kWidth + 8;
  using Part = Tiles<kSlice / 16, kWidth / 16 / kSplits>;
  T h[2][kRows][kStride];
  float sums[kSplits][Cell::kRecurrent][kRows][kSlice + 4];
  uint32_t x[kStages][Cell::kInput][Owner<kSlice>::kThreads];
  typename Part::Shared tiles;
  uint64_t arrived[2];
};

template <class Cell, class T, int kSlice, int kRanks>
__global__ void __launch_bounds__(kThreads, 1) wide_forward(RnnCuda p, int most) {
  extern __shared__ __align__(16) char memory[];
  using Shared = ForwardShared<Cell, T, kSlice, kRanks>;
  auto& shared = *reinterpret_cast<Shared*>(memory);
  constexpr int kFirst = Cell::kGates - Cell::kInput, kPart = Shared::kWidth / Shared::kSplits;
  const int rank = static_cast<int>(cluster_rank()), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int gate = warp % Shared::kGroups, split = warp / Shared::kGroups, width = static_cast<int>(p.width);
  const int64_t channels = p.heads * p.width;
  const Sequences sequences(p, most);
  const Owner<kSlice> own(p, rank, sequences.first, sequences.count);

  typename Shared::Part tiles;
  if (gate < Cell::kRecurrent)
    tiles.load(shared.tiles, [&](int m, int k, int i) -> uint32_t {
      const int row = rank * kSlice + m * 16 + lane / 4 * 2 + i % 2,
                at = split * kPart + k * 16 + lane % 4 * 2 + i / 2 * 8;
      if (row >= width || at >= width) return 0;
      return *reinterpret_cast<const uint32_t*>(static_cast<const T*>(p.recurrent) +
                                                ((gate * p.heads + blockIdx.y) * p.width + row) * p.width +
                                                at);
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

  const uint32_t bytes = sequences.count * Shared::kWidth * sizeof(T);
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
    if (own.exists && t < p.tokens) {
      const T* x =
          static_cast<const T*>(p.wx) + (own.sequence * p.tokens + t) * Cell::kInput * channels + own.channel;
#pragma unroll
      for (int j = 0; j < Cell::kInput; ++j)
        copy_async<4>(&shared.x[t % kStages][j][threadIdx.x], x + j * channels);
    }
    copy_async_commit();
  };
  for (int t = 0; t < kStages - 1; ++t) copy(t);
  bool fresh = starts_at(p, own, 0);

  for (int64_t t = 0; t < p.tokens; ++t) {
    const int now = static_cast<int>(t % 2);
    const bool next_fresh = starts_at(p, own, t + 1);
    if (t) {
      arrival_wait(&shared.arrived[now], static_cast<uint32_t>((t - 1) / 2 % 2));
      if (threadIdx.x == 0) arrival_expect(&shared.arrived[now], bytes);
    }
    if (gate < Cell::kRecurrent) {
      float sum[kSlice / 16][4] = {};
      tiles.multiply(sum, shared.tiles, &shared.h[now][0][split * kPart], Shared::kStride);
#pragma unroll
      for (int m = 0; m < kSlice / 16; ++m)
#pragma unroll
        for (int r = 0; r < 2; ++r)
          *reinterpret_cast<float2*>(&shared.sums[split][gate][lane % 4 * 2 + r][m * 16 + lane / 4 * 2]) =
              make_float2(sum[m][r], sum[m][2 + r]);
    }
    copy(t + kStages - 1);
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
          const float2 sum = *reinterpret_cast<const float2*>(&shared.sums[i][j][own.row][own.neuron]);
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
      const uint32_t barrier = shared_address(&shared.arrived[1 - now]);
#pragma unroll
      for (int i = 0; i < kRanks; i += 4) {
        const uint32_t target = (i + lane / 4 % 4 + rank) % kRanks;  // not all to the same at once
        if (own.row < sequences.count) send16(address_in(to, target), address_in(barrier, target), eight);
      }
    }
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

// Backward: warp w multiplies the rows of inputs [w, w + 1) kWidth / 8 with the gates of this CTA.
template <class Cell, class T, int kSlice, int kRanks>
struct BackwardShared {
  static constexpr int kWidth = kSlice * kRanks, kStride = Cell::kRecurrent * kSlice + 8,
                       kSaved = Cell::kStates - 1;
  using Part = Tiles<kWidth / 16 / kWarps, Cell::kRecurrent * kSlice / 16>;
  uint32_t parts[2][kRanks][kSlice / 16][32][2];  // received: lanes and sequences as in a product
  T dgates[kRows][kStride];
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
        if (j < Cell::kRecurrent) write_pair(&shared.dgates[own.row][j * kSlice + own.neuron], dgates[j]);
        if (own.exists)
          write_pair(static_cast<T*>(q.dgates) + (token * Cell::kGates + j) * channels + own.channel,
                     dgates[j]);
      }
    }
    __syncthreads();
    float sum[kRowTiles][4] = {};
    tiles.multiply(sum, shared.tiles, &shared.dgates[0][0], Shared::kStride);
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

}  // namespace

CudaStatus rnn_forward_wide(const RnnCuda& p, void* stream) {
  return with_wide(p, [&]<class Cell, class T, int kSlice, int kRanks>(Cell, T, Cut<kSlice, kRanks>) {
    return launch(wide_forward<Cell, T, kSlice, kRanks>, kRanks,
                  sizeof(ForwardShared<Cell, T, kSlice, kRanks>), p, p, stream);
  });
}

CudaStatus rnn_backward_wide(const RnnCudaGradient& q, void* stream) {
  return with_wide(q.forward, [&]<class Cell, class T, int kSlice, int kRanks>(Cell, T, Cut<kSlice, kRanks>) {
    return launch(wide_backward<Cell, T, kSlice, kRanks>, kRanks,
                  sizeof(BackwardShared<Cell, T, kSlice, kRanks>), q, q.forward, stream);
  });
}

}  // namespace weft::kernels
