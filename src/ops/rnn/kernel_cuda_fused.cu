// Heads whose recurrent matrix fits the registers of one CTA: it stays there for all tokens, as left operand of
// mma.sync; a warp has 16 neurons with all their gates, so the cell needs no exchange. 8 sequences are the right operand,
// which is in shared memory: h (forward) or the gradients of the gates (backward). One barrier a token. What a token
// needs from device memory is copied to shared memory kStages - 1 tokens ahead.
#include <cuda_runtime.h>

#include "ops/cuda/device.cuh"
#include "ops/rnn/cells.cuh"
#include "ops/rnn/fused.cuh"
#include "ops/rnn/kernel_cuda.h"

namespace weft::kernels {
namespace {

using namespace fused;

template <class Cell, class T, int kWidth>
struct ForwardShared {
  T h[2][kRows][kWidth + kPad];
  T x[kStages][Cell::kInput][kRows][kWidth + kPad];
};

template <class Cell, class T, int kWidth>
__global__ void __launch_bounds__(threads_for<kWidth>(), 1) fused_forward(RnnCuda p) {
  extern __shared__ __align__(16) char memory[];
  auto& shared = *reinterpret_cast<ForwardShared<Cell, T, kWidth>*>(memory);
  constexpr int kThreads = threads_for<kWidth>(), kFirst = Cell::kGates - Cell::kInput;
  const Place at(p);
  const int64_t channels = p.heads * p.width, channel = blockIdx.x * p.width + at.neuron;
  clear_shared<kThreads>(shared.x, sizeof(shared.x));
  __syncthreads();
  Matrix<T, Cell::kRecurrent, kWidth> matrix;
  matrix.load(p, at.neuron);
  float bias[Cell::kGates][2] = {};
  if (p.bias && at.has_neurons)
#pragma unroll
    for (int j = 0; j < Cell::kGates; ++j)
#pragma unroll
      for (int n = 0; n < 2; ++n) bias[j][n] = p.bias[j * channels + channel + n];
  float states[Cell::kStates][4];
  read_states(states, p.initial, p, at);
#pragma unroll
  for (int r = 0; r < 2; ++r) write_pair(&shared.h[0][at.row + r][at.neuron], states[0], r);

  Copier<T, kWidth> x(p.wx, p, at, 0, Cell::kInput);
  const int tokens = static_cast<int>(p.tokens);
  const auto copy = [&](int t) {
    if (t < tokens) x.copy(&shared.x[t % kStages][0][0][0], Cell::kInput);
    x.move(1);
    copy_async_commit();
  };
  for (int t = 0; t < kStages - 1; ++t) copy(t);
  Output<T> out(p.h, p, at, 0, 1);
  Saved<Cell> saved(p, at, 0, kThreads / 32);
  const Starts starts(p, at);
  bool fresh[2], next_fresh[2] = {};
  starts.read(next_fresh, 0);

  for (int t = 0; t < tokens; ++t) {
    copy_async_wait<kStages - 2>();
    __syncthreads();
    fresh[0] = next_fresh[0];
    fresh[1] = next_fresh[1];
    if (t + 1 < tokens) starts.read(next_fresh, t + 1);
    float products[Cell::kRecurrent][4] = {}, gates[Cell::kGates][4];
    matrix.multiply(products, &shared.h[t % 2][0][0], kWidth + kPad, 0);
    copy(t + kStages - 1);
    clear(products, fresh);
    clear(states, fresh);
#pragma unroll
    for (int j = 0; j < Cell::kGates; ++j) {
      float x[4] = {};
      if (j >= kFirst) read_four<kWidth>(x, &shared.x[t % kStages][j - kFirst][0][0], at);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        gates[j][e] = x[e] + bias[j][e / 2];
        if (j < Cell::kRecurrent) gates[j][e] += products[j][e];
      }
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float g[Cell::kGates], before[Cell::kStates], after[Cell::kStates];
      gather(g, gates, e);
      gather(before, states, e);
      Cell::forward(g, before, nullptr, after);
      scatter(gates, g, e);
      scatter(states, after, e);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) write_pair(&shared.h[(t + 1) % 2][at.row + r][at.neuron], states[0], r);
    out.write(states, 0, 1, at);
    out.move(1);
    if (!p.keep) continue;
    if (at.has_row[0]) saved.template write<T>(gates, states);
    saved.move(1);
  }
  write_states(p.state, states, p, at);
}

// Of h only what the cell's derivative reads is wanted, but it is small.
template <class Cell, class T, int kWidth>
struct BackwardShared {
  static constexpr int kSaved = Cell::kStates > 1 ? Cell::kStates - 1 : 1;
  T dgates[2][kRows][Cell::kRecurrent * kWidth + kPad];
  T dh[kStages][kRows][kWidth + kPad];
  T h[kStages][kRows][kWidth + kPad];  // of the token before, as the states
  uint2 gates[kStages][Cell::kGates == 1 ? 1 : Cell::kGates / 2][kWidth * 2][Cell::kGates == 1 ? 1 : 2];
  float4 states[kStages][kSaved][kWidth * 2];
};

template <class Cell, class T, int kWidth>
__global__ void __launch_bounds__(threads_for<kWidth>(), 1) fused_backward(RnnCudaGradient q) {
  extern __shared__ __align__(16) char memory[];
  auto& shared = *reinterpret_cast<BackwardShared<Cell, T, kWidth>*>(memory);
  constexpr int kThreads = threads_for<kWidth>();
  const RnnCuda& p = q.forward;
  const Place at(p);
  clear_shared<kThreads>(shared.dh, sizeof(shared) - sizeof(shared.dgates));
  __syncthreads();
  Matrix<T, Cell::kRecurrent, kWidth> matrix;
  matrix.load(p, at.neuron);
  float after[Cell::kStates][4] = {}, ds[Cell::kStates][4];
  read_states(ds, q.dstate, p, at);
  {
    const Saved<Cell> last(p, at, p.tokens - 1, kThreads / 32);
    Output<T> h(p.h, p, at, p.tokens - 1, 1);
    if (at.has_row[0])
#pragma unroll
      for (int i = 1; i < Cell::kStates; ++i) set_state(after, i, last.states[i - 1]);
#pragma unroll
    for (int r = 0; r < 2; ++r)
      if (at.has(r)) {
        const float2 pair = pair_at(h.to + r * h.row);
        after[0][r] = pair.x;
        after[0][2 + r] = pair.y;
      }
  }

  // half of the threads copy dh, half h of the token before
  const int tokens = static_cast<int>(p.tokens);
  const bool first_half = Copier<T, kWidth>::part() == 0;
  Copier<T, kWidth> half_in(first_half ? q.dh : p.h, p, at, first_half ? tokens - 1 : tokens - 2, 1);
  Saved<Cell> saved(p, at, tokens - 1, kThreads / 32);  // states of the token before
  saved.states -= saved.stride * Saved<Cell>::kStates;
  const auto copy = [&](int t) {
    const int stage = t & (kStages - 1);
    if (t >= 0 && at.has_row[0]) {
      if constexpr (Cell::kGates % 2 == 0) {
#pragma unroll
        for (int j = 0; j < Cell::kGates; j += 2)
          copy_async16(&shared.gates[stage][j / 2][threadIdx.x][0], saved.gates + j);
      } else {
        copy_async8(&shared.gates[stage][0][threadIdx.x][0], saved.gates);
      }
    }
    if (half_in.from && t >= (first_half ? 0 : 1))
      copy_async16((first_half ? &shared.dh[stage][0][0] : &shared.h[stage][0][0]) + half_in.block,
                   half_in.from);
    if (t >= 1 && at.has_row[0])
#pragma unroll
      for (int i = 0; i < Cell::kStates - 1; ++i)
        copy_async16(&shared.states[stage][i][threadIdx.x], saved.states + i);
    saved.move(-1);
    half_in.move(-1);
    copy_async_commit();
  };
  for (int i = 1; i < kStages; ++i) copy(tokens - i);
  Output<T> out(q.dgates, p, at, tokens - 1, Cell::kGates);
  const Starts starts(p, at);
  bool fresh[2], next_fresh[2] = {};
  starts.read(next_fresh, tokens - 1);
  copy_async_wait<kStages - 2>();
  __syncthreads();

  for (int t = tokens - 1; t >= 0; --t) {
    const int stage = t % kStages;
    fresh[0] = next_fresh[0];
    fresh[1] = next_fresh[1];
    if (t) starts.read(next_fresh, t - 1);
    float before[Cell::kStates][4], gates[Cell::kGates][4], dgates[Cell::kGates][4], dh[4];
    if (t) {
      read_four<kWidth>(before[0], &shared.h[stage][0][0], at);
#pragma unroll
      for (int i = 1; i < Cell::kStates; ++i) set_state(before, i, shared.states[stage][i - 1][threadIdx.x]);
    } else {
      read_states(before, p.initial, p, at);
    }
    uint2 packed[Cell::kGates];
    if constexpr (Cell::kGates % 2 == 0) {
#pragma unroll
      for (int j = 0; j < Cell::kGates; j += 2) {
        const uint4 two = *reinterpret_cast<const uint4*>(&shared.gates[stage][j / 2][threadIdx.x][0]);
        packed[j] = make_uint2(two.x, two.y);
        packed[j + 1] = make_uint2(two.z, two.w);
      }
    } else {
      packed[0] = shared.gates[stage][0][threadIdx.x][0];
    }
    unpack_gates<T>(gates, packed);
    read_four<kWidth>(dh, &shared.dh[stage][0][0], at);
    float seen[Cell::kStates][4];
#pragma unroll
    for (int i = 0; i < Cell::kStates; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) seen[i][e] = fresh[e % 2] ? 0.f : before[i][e];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
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
      if (!at.has(e % 2))  // what is beyond the head must not reach it through a product with zero
#pragma unroll
        for (int j = 0; j < Cell::kGates; ++j) dgates[j][e] = 0;
    }
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int j = 0; j < Cell::kRecurrent; ++j)
        write_pair(&shared.dgates[t % 2][at.row + r][j * kWidth + at.neuron], dgates[j], r);
    copy_async_wait<kStages - 3>();
    __syncthreads();
    float product[Cell::kRecurrent][4] = {};
    matrix.multiply(product, &shared.dgates[t % 2][0][0], Cell::kRecurrent * kWidth + kPad, kWidth);
    copy(t - (kStages - 1));
    out.write(dgates, 0, Cell::kGates, at);
    out.move(-1);
#pragma unroll
    for (int j = 0; j < Cell::kRecurrent; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) ds[0][e] += product[j][e];
    clear(ds, fresh);
  }
  write_states(q.dinitial, ds, p, at);
}

template <class Kernel, class Problem>
CudaStatus launch(Kernel* kernel, int threads, size_t bytes, const Problem& problem, const RnnCuda& p,
                  void* stream) {
  if (const auto error = allow_shared(kernel, bytes); error != cudaSuccess) return status_of(error);
  const dim3 grid(static_cast<unsigned>(p.heads), static_cast<unsigned>((p.batch + kRows - 1) / kRows));
  kernel<<<grid, threads, bytes, static_cast<cudaStream_t>(stream)>>>(problem);
  return last_status();
}

// Calls body(Cell{}, T{}, std::integral_constant: the width rounded up).
template <class Body>
CudaStatus with_fused(const RnnCuda& p, const Body& body) {
  return with_matrix_cell<Quick>(p.cell, [&]<class Cell>(Cell cell) {
    const auto typed = [&]<class T>(T type) {
      return p.width <= 64 ? body(cell, type, std::integral_constant<int, 64>{})
                           : body(cell, type, std::integral_constant<int, 128>{});
    };
    return p.type == CudaType::bf16 ? typed(bf16{}) : typed(fp16{});
  });
}

}  // namespace

CudaStatus rnn_forward_fused(const RnnCuda& p, void* stream) {
  return with_fused(p, [&]<class Cell, class T, int kWidth>(Cell, T, std::integral_constant<int, kWidth>) {
    return launch(fused_forward<Cell, T, kWidth>, threads_for<kWidth>(),
                  sizeof(ForwardShared<Cell, T, kWidth>), p, p, stream);
  });
}

CudaStatus rnn_backward_fused(const RnnCudaGradient& q, void* stream) {
  return with_fused(q.forward,
                    [&]<class Cell, class T, int kWidth>(Cell, T, std::integral_constant<int, kWidth>) {
                      return launch(fused_backward<Cell, T, kWidth>, threads_for<kWidth>(),
                                    sizeof(BackwardShared<Cell, T, kWidth>), q, q.forward, stream);
                    });
}

}  // namespace weft::kernels
