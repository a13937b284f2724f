// Heads whose recurrent matrix fits the registers of one CTA: it stays there for all tokens, as left operand of
// mma.sync; a warp has 16 neurons with all their gates, so the cell needs no exchange. 2, 4 or 8 sequences, as few as the
// multiprocessors allow, are the right operand, which is in shared memory: h (forward) or the gradients of the gates
// (backward). One barrier a token. What a token needs from device memory is copied to shared memory kStages - 1 tokens
// ahead.
#include <cuda_runtime.h>

#include "ops/cuda/device.cuh"
#include "ops/rnn/cells.cuh"
#include "ops/rnn/fused.cuh"
#include "ops/rnn/kernel_cuda.h"

namespace weft::kernels {
namespace {

using namespace fused;

template <class Cell, class T, int kWidth, int kRows>
struct ForwardShared {
  T h[2][kRows][kWidth + kPad];
  T x[kStages][Cell::kInput][kRows][kWidth + kPad];
};

template <class Cell, class T, int kWidth, int kRows>
__global__ void __launch_bounds__(threads_for<kWidth>(), 1) fused_forward(RnnCuda p) {
  extern __shared__ __align__(16) char memory[];
  auto& shared = *reinterpret_cast<ForwardShared<Cell, T, kWidth, kRows>*>(memory);
  using At = Place<kRows>;
  constexpr int kThreads = threads_for<kWidth>(), kFirst = Cell::kGates - Cell::kInput;
  constexpr int kElements = At::kElements;
  const At at(p);
  const int64_t channels = p.heads * p.width, channel = blockIdx.x * p.width + at.neuron;
  clear_shared<kThreads>(shared.x, sizeof(shared.x));
  __syncthreads();
  Matrix<T, Cell::kRecurrent, kWidth> matrix;
  matrix.load(p);
  float bias[Cell::kGates][At::kNeurons] = {};
  if (p.bias && at.has_neurons)
#pragma unroll
    for (int j = 0; j < Cell::kGates; ++j)
#pragma unroll
      for (int n = 0; n < At::kNeurons; ++n) bias[j][n] = p.bias[j * channels + channel + n];
  float states[Cell::kStates][kElements];
  read_states(states, p.initial, p, at);
#pragma unroll
  for (int r = 0; r < At::kSequences; ++r) write_row<At>(&shared.h[0][at.row + r][at.neuron], states[0], r);

  Copier<T, kWidth, kRows> x_in(p.wx, p, at.batch, 0, Cell::kInput);
  const int tokens = static_cast<int>(p.tokens), row_of_lane = At::sequence_of(threadIdx.x % 8);
  const auto copy = [&](int t) {
    if (t < tokens) x_in.copy(&shared.x[t % kStages][0][0][0], Cell::kInput);
    x_in.move(1);
    copy_async_commit();
  };
  for (int t = 0; t < kStages - 1; ++t) copy(t);
  Output<T, At> out(p.h, p, at, 0, 1);
  Saved<T, Cell, At> saved(p, at, 0, kThreads / 32);
  const Starts<At> starts(p, at);
  bool fresh[At::kSequences], next_fresh[At::kSequences] = {};
  starts.read(next_fresh, 0);

  for (int t = 0; t < tokens; ++t) {
    copy_async_wait<kStages - 2>();
    __syncthreads();
#pragma unroll
    for (int r = 0; r < At::kSequences; ++r) fresh[r] = next_fresh[r];
    if (t + 1 < tokens) starts.read(next_fresh, t + 1);
    float sums[Cell::kRecurrent][4] = {}, products[Cell::kRecurrent][kElements],
          gates[Cell::kGates][kElements];
    matrix.multiply(sums, &shared.h[t % 2][0][0], row_of_lane, kWidth + kPad, 0, [] {});
    copy(t + kStages - 1);
#pragma unroll
    for (int j = 0; j < Cell::kRecurrent; ++j) At::take(products[j], sums[j]);
    clear(products, fresh);
    clear(states, fresh);
#pragma unroll
    for (int j = 0; j < Cell::kGates; ++j) {
      float x[kElements] = {};
      if (j >= kFirst) read_block<kWidth>(x, &shared.x[t % kStages][j - kFirst][0][0], at);
#pragma unroll
      for (int e = 0; e < kElements; ++e) {
        gates[j][e] = x[e] + bias[j][e / At::kSequences];
        if (j < Cell::kRecurrent) gates[j][e] += products[j][e];
      }
    }
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      float g[Cell::kGates], before[Cell::kStates], after[Cell::kStates];
      gather(g, gates, e);
      gather(before, states, e);
      Cell::forward(g, before, nullptr, after);
      scatter(gates, g, e);
      scatter(states, after, e);
    }
#pragma unroll
    for (int r = 0; r < At::kSequences; ++r)
      write_row<At>(&shared.h[(t + 1) % 2][at.row + r][at.neuron], states[0], r);
    out.write(states, 0, 1, at);
    out.move(1);
    if (!p.keep) continue;
    if (at.has_row[0]) saved.write(gates, states);
    saved.move(1);
  }
  write_states(p.state, states, p, at);
}

// Of h only what the cell's derivative reads is wanted, but it is small.
template <class Cell, class T, int kWidth, int kRows>
struct BackwardShared {
  using Keep = Saved<T, Cell, Place<kRows>>;
  T dgates[2][kRows][Cell::kRecurrent * kWidth + kPad];
  T dh[kStages][kRows][kWidth + kPad];
  T h[kStages][kRows][kWidth + kPad];  // of the token before, as the states
  typename Keep::Vector gates[kStages][Keep::kVectors > 0 ? Keep::kVectors : 1][kWidth * 2];
  typename Keep::State states[kStages][Keep::kStates > 0 ? Keep::kStates : 1][kWidth * 2];
};

template <class Cell, class T, int kWidth, int kRows>
__global__ void __launch_bounds__(threads_for<kWidth>(), 1) fused_backward(RnnCudaGradient q) {
  extern __shared__ __align__(16) char memory[];
  auto& shared = *reinterpret_cast<BackwardShared<Cell, T, kWidth, kRows>*>(memory);
  using At = Place<kRows>;
  using Keep = Saved<T, Cell, At>;
  constexpr int kThreads = threads_for<kWidth>(), kElements = At::kElements;
  const RnnCuda& p = q.forward;
  const At at(p);
  clear_shared<kThreads>(shared.dh, sizeof(shared) - sizeof(shared.dgates));
  __syncthreads();
  Matrix<T, Cell::kRecurrent, kWidth> matrix;
  matrix.load(p);
  float after[Cell::kStates][kElements] = {}, ds[Cell::kStates][kElements];
  read_states(ds, q.dstate, p, at);
  const int tokens = static_cast<int>(p.tokens), row_of_lane = At::sequence_of(threadIdx.x % 8);
  Keep saved(p, at, tokens - 1, kThreads / 32);
  if (at.has_row[0])
#pragma unroll
    for (int i = 0; i < Keep::kStates; ++i)
#pragma unroll
      for (int e = 0; e < kElements; ++e) after[i + 1][e] = saved.states[i].of[e];
  {
    const Output<T, At> h(p.h, p, at, tokens - 1, 1);
#pragma unroll
    for (int r = 0; r < At::kSequences; ++r)
      if (at.has(r)) read_row<At>(after[0], h.to + r * h.row, r);
  }

  // some of the threads copy dh, as many others h of the token before
  const int part = Copier<T, kWidth, kRows>::part();
  Copier<T, kWidth, kRows> rows_in(part == 0 ? q.dh : p.h, p, at.batch, part == 0 ? tokens - 1 : tokens - 2,
                                   1);
  saved.states -= saved.stride * Keep::kStates;  // of the token before
  const auto copy = [&](int t) {
    const int stage = t & (kStages - 1);
    if (t >= 0 && at.has_row[0])
#pragma unroll
      for (int v = 0; v < Keep::kVectors; ++v)
        copy_async<sizeof(typename Keep::Vector)>(&shared.gates[stage][v][threadIdx.x], saved.gates + v);
    if (rows_in.from && part < 2 && t >= part)
      copy_async16((part == 0 ? &shared.dh[stage][0][0] : &shared.h[stage][0][0]) + rows_in.block,
                   rows_in.from);
    if (t >= 1 && at.has_row[0])
#pragma unroll
      for (int i = 0; i < Keep::kStates; ++i)
        copy_async<sizeof(typename Keep::State)>(&shared.states[stage][i][threadIdx.x], saved.states + i);
    saved.move(-1);
    rows_in.move(-1);
    copy_async_commit();
  };
  for (int i = 1; i < kStages; ++i) copy(tokens - i);
  Output<T, At> out(q.dgates, p, at, tokens - 1, Cell::kGates);
  const Starts<At> starts(p, at);
  bool fresh[At::kSequences], next_fresh[At::kSequences] = {};
  starts.read(next_fresh, tokens - 1);
  copy_async_wait<kStages - 2>();
  __syncthreads();

  for (int t = tokens - 1; t >= 0; --t) {
    const int stage = t % kStages;
#pragma unroll
    for (int r = 0; r < At::kSequences; ++r) fresh[r] = next_fresh[r];
    if (t) starts.read(next_fresh, t - 1);
    float before[Cell::kStates][kElements], gates[Cell::kGates][kElements] = {},
                                            dgates[Cell::kGates][kElements], dh[kElements];
    if (t) {
      read_block<kWidth>(before[0], &shared.h[stage][0][0], at);
#pragma unroll
      for (int i = 0; i < Keep::kStates; ++i) {
        const auto state = shared.states[stage][i][threadIdx.x];
#pragma unroll
        for (int e = 0; e < kElements; ++e) before[i + 1][e] = state.of[e];
      }
    } else {
      read_states(before, p.initial, p, at);
    }
#pragma unroll
    for (int v = 0; v < Keep::kVectors; ++v)
      Keep::unpack_gates(gates, shared.gates[stage][v][threadIdx.x], v);
    read_block<kWidth>(dh, &shared.dh[stage][0][0], at);
    float seen[Cell::kStates][kElements];
#pragma unroll
    for (int i = 0; i < Cell::kStates; ++i)
#pragma unroll
      for (int e = 0; e < kElements; ++e) seen[i][e] = fresh[e % At::kSequences] ? 0.f : before[i][e];
#pragma unroll
    for (int e = 0; e < kElements; ++e) {
      float g[Cell::kGates], s[Cell::kStates], n[Cell::kStates], d[Cell::kStates], dg[Cell::kGates],
          d_before[Cell::kStates];
      gather(g, gates, e);
      gather(s, seen, e);
      gather(n, after, e);
      gather(d, ds, e);
      d[0] += dh[e];
      Cell::backward(g, s, nullptr, n, d, dg, d_before, nullptr);
      scatter(dgates, dg, e);
      scatter(ds, d_before, e);
#pragma unroll
      for (int i = 0; i < Cell::kStates; ++i) after[i][e] = before[i][e];
      if (!at.has(e %
                  At::kSequences))  // what is beyond the head must not reach it through a product with zero
#pragma unroll
        for (int j = 0; j < Cell::kGates; ++j) dgates[j][e] = 0;
    }
#pragma unroll
    for (int r = 0; r < At::kSequences; ++r)
#pragma unroll
      for (int j = 0; j < Cell::kRecurrent; ++j)
        write_row<At>(&shared.dgates[t % 2][at.row + r][j * kWidth + at.neuron], dgates[j], r);
    copy_async_wait<kStages - 3>();
    __syncthreads();
    float sums[Cell::kRecurrent][4] = {};
    matrix.multiply(sums, &shared.dgates[t % 2][0][0], row_of_lane, Cell::kRecurrent * kWidth + kPad, kWidth,
                    [&] {
                      copy(t - (kStages - 1));
                      out.write(dgates, 0, Cell::kGates, at);
                      out.move(-1);
                    });
#pragma unroll
    for (int j = 0; j < Cell::kRecurrent; ++j) {
      float product[kElements];
      At::take(product, sums[j]);
#pragma unroll
      for (int e = 0; e < kElements; ++e) ds[0][e] += product[e];
    }
    clear(ds, fresh);
  }
  write_states(q.dinitial, ds, p, at);
}

// Sequences of a CTA: as few as leave a multiprocessor for every CTA.
int rows_for(const RnnCuda& p) {
  int device = 0, multiprocessors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  int rows = 2;
  while (rows < 8 && p.heads * ((p.batch + rows - 1) / rows) > multiprocessors) rows *= 2;
  return rows;
}

template <int kRows, class Kernel, class Problem>
CudaStatus launch(Kernel* kernel, int threads, size_t bytes, const Problem& problem, const RnnCuda& p,
                  void* stream) {
  if (const auto error = allow_shared(kernel, bytes); error != cudaSuccess) return status_of(error);
  const dim3 grid(static_cast<unsigned>(p.heads), static_cast<unsigned>((p.batch + kRows - 1) / kRows));
  kernel<<<grid, threads, bytes, static_cast<cudaStream_t>(stream)>>>(problem);
  return last_status();
}

// Calls body(Cell{}, T{}, Cut{}): the width rounded up, and sequences.
template <int kWidth, int kRows>
struct Cut {};
template <class Body>
CudaStatus with_fused(const RnnCuda& p, const Body& body) {
  return with_matrix_cell<Quick>(p.cell, [&]<class Cell>(Cell cell) {
    const auto typed = [&]<class T>(T type) {
      const auto cut = [&]<int kRows>(std::integral_constant<int, kRows>) {
        return p.width <= 64 ? body(cell, type, Cut<64, kRows>{}) : body(cell, type, Cut<128, kRows>{});
      };
      const int rows = rows_for(p);
      if (rows == 2) return cut(std::integral_constant<int, 2>{});
      if (rows == 4) return cut(std::integral_constant<int, 4>{});
      return cut(std::integral_constant<int, 8>{});
    };
    return p.type == CudaType::bf16 ? typed(bf16{}) : typed(fp16{});
  });
}

}  // namespace

CudaStatus rnn_forward_fused(const RnnCuda& p, void* stream) {
  return with_fused(p, [&]<class Cell, class T, int kWidth, int kRows>(Cell, T, Cut<kWidth, kRows>) {
    return launch<kRows>(fused_forward<Cell, T, kWidth, kRows>, threads_for<kWidth>(),
                         sizeof(ForwardShared<Cell, T, kWidth, kRows>), p, p, stream);
  });
}

CudaStatus rnn_backward_fused(const RnnCudaGradient& q, void* stream) {
  return with_fused(q.forward, [&]<class Cell, class T, int kWidth, int kRows>(Cell, T, Cut<kWidth, kRows>) {
    return launch<kRows>(fused_backward<Cell, T, kWidth, kRows>, threads_for<kWidth>(),
                         sizeof(BackwardShared<Cell, T, kWidth, kRows>), q, q.forward, stream);
  });
}

}  // namespace weft::kernels
