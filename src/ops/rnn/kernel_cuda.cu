// Nonlinear recurrences of any width and type, in fp32 arithmetic: with a recurrent matrix one launch a token, in which
// a warp takes one or four neurons of a head for several sequences; without, one thread a channel through all tokens.
#include <cuda_runtime.h>

#include <type_traits>

#include "ops/cuda/device.cuh"
#include "ops/rnn/cells.cuh"
#include "ops/rnn/kernel_cuda.h"

namespace weft::kernels {
namespace {

constexpr int kRows = 8, kWarps = 4,
              kGroups = 4;  // sequences of a CTA; rows of R that a warp takes at a time

// Where the numbers of one neuron of one sequence lie.
template <class Cell, class T>
struct Site {
  const RnnCuda& p;
  int64_t plane;     // B H D
  int64_t row;       // sequence
  int64_t channel;   // head D + neuron
  int64_t channels;  // H D

  __device__ Site(const RnnCuda& problem, int64_t sequence, int64_t at)
      : p(problem),
        plane(problem.batch * problem.heads * problem.width),
        row(sequence),
        channel(at),
        channels(problem.heads * problem.width) {}

  __device__ int64_t element() const { return row * channels + channel; }
  __device__ bool starts(int64_t t) const { return p.starts && p.starts[row * p.tokens + t]; }
  __device__ int64_t slot(int64_t t) const { return p.keep ? t : t & 1; }

  __device__ void input(int64_t t, float (&g)[Cell::kGates]) const {
    constexpr int kFirst = Cell::kGates - Cell::kInput;
    const T* x = static_cast<const T*>(p.wx) + (row * p.tokens + t) * Cell::kInput * channels + channel;
#pragma unroll
    for (int j = 0; j < Cell::kGates; ++j) {
      g[j] = j < kFirst ? 0.f : to_float(x[(j - kFirst) * channels]);
      if (p.bias) g[j] += p.bias[j * channels + channel];
    }
  }
  // States before token t; t = T: after the last.
  __device__ void before(int64_t t, float (&s)[Cell::kStates]) const {
    const float* from = t ? p.states + slot(t - 1) * Cell::kStates * plane : p.initial;
#pragma unroll
    for (int i = 0; i < Cell::kStates; ++i) s[i] = from ? from[i * plane + element()] : 0.f;
    if (t < p.tokens && starts(t))
#pragma unroll
      for (int i = 0; i < Cell::kStates; ++i) s[i] = 0;
  }
  __device__ void parameters(float (&a)[Cell::kParameters + 1]) const {
#pragma unroll
    for (int i = 0; i < Cell::kParameters; ++i) a[i] = p.parameter[i * channels + channel];
  }
  __device__ float saved(int64_t t, int j) const {
    return static_cast<const float*>(p.gates)[(t * Cell::kGates + j) * plane + element()];
  }
  __device__ void output(int64_t t, const float (&g)[Cell::kGates], const float (&s)[Cell::kStates]) const {
    static_cast<T*>(p.h)[(row * p.tokens + t) * channels + channel] = from_float<T>(s[0]);
#pragma unroll
    for (int i = 0; i < Cell::kStates; ++i) {
      p.states[(slot(t) * Cell::kStates + i) * plane + element()] = s[i];
      if (t == p.tokens - 1) p.state[i * plane + element()] = s[i];
    }
    if (p.keep)
#pragma unroll
      for (int j = 0; j < Cell::kGates; ++j)
        static_cast<float*>(p.gates)[(t * Cell::kGates + j) * plane + element()] = g[j];
  }
};

// Four neighbours where they are aligned, else one.
template <int kVector, class T>
__device__ __forceinline__ void read(float (&to)[kVector], const T* from) {
  if constexpr (kVector == 1) {
    to[0] = to_float(*from);
  } else if constexpr (sizeof(T) == 4) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
  } else {
    const uint2 x = *reinterpret_cast<const uint2*>(from);
    const float2 low = unpack<T>(x.x), high = unpack<T>(x.y);
    to[0] = low.x, to[1] = low.y, to[2] = high.x, to[3] = high.y;
  }
}

// sums[g kRows + r] += this lane's part of w_g . x_r over n numbers; w_g and x_r are `w_apart` and `x_apart` numbers apart.
template <int kVector, class T, class X>
__device__ __forceinline__ void add_products(float (&sums)[kGroups * kRows], const T* w, int64_t w_apart,
                                             int groups, const X* x, int64_t x_apart, int rows, int64_t n) {
#pragma unroll 2
  for (int64_t i = threadIdx.x % 32 * kVector; i < n; i += 32 * kVector) {
    float weights[kGroups][kVector];
#pragma unroll
    for (int g = 0; g < kGroups; ++g)
      if (g < groups) read(weights[g], w + g * w_apart + i);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) continue;
      float other[kVector];
      read(other, x + r * x_apart + i);
#pragma unroll
      for (int g = 0; g < kGroups; ++g)
        if (g < groups)
#pragma unroll
          for (int v = 0; v < kVector; ++v) sums[g * kRows + r] += weights[g][v] * other[v];
    }
  }
}

// Lane l gets the sum of x[l] over all lanes.
__device__ __forceinline__ float sum_of_mine(float (&x)[32]) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2)
#pragma unroll
    for (int i = 0; i < step; ++i) {
      const bool upper = threadIdx.x & step;
      const float sent = upper ? x[i] : x[i + step], kept = upper ? x[i + step] : x[i];
      x[i] = kept + __shfl_xor_sync(0xffffffff, sent, step);
    }
  return x[0];
}

// Neurons of a warp: all gates of one, or of cells with one gate several.
template <class Cell>
constexpr int kForwardNeurons = Cell::kRecurrent == 1 ? kGroups : 1;

template <class Cell, class T, int kVector>
__global__ void __launch_bounds__(kWarps * 32) step_forward(RnnCuda p, int64_t t) {
  constexpr int kNeurons = kForwardNeurons<Cell>;
  const int lane = threadIdx.x % 32, row = lane % kRows;
  const int64_t neuron = (int64_t{blockIdx.x} * kWarps + threadIdx.x / 32) * kNeurons, head = blockIdx.y;
  const int64_t first = int64_t{blockIdx.z} * kRows, channels = p.heads * p.width, plane = p.batch * channels;
  if (neuron >= p.width) return;
  const int rows = static_cast<int>(p.batch - first < kRows ? p.batch - first : kRows);
  const int64_t mine = neuron + (kNeurons > 1 ? lane / kRows : 0);
  const Site<Cell, T> site(p, first + row, head * p.width + mine);
  const float* states = t ? p.states + site.slot(t - 1) * Cell::kStates * plane : p.initial;

  float sums[kGroups * kRows] = {};
  if (states) {
    const T* matrix = static_cast<const T*>(p.recurrent) + (head * p.width + neuron) * p.width;
    const int64_t left = p.width - neuron;
    const int groups = kNeurons > 1 ? static_cast<int>(left < kNeurons ? left : kNeurons) : Cell::kRecurrent;
    add_products<kVector>(sums, matrix, kNeurons > 1 ? p.width : p.heads * p.width * p.width, groups,
                          states + first * channels + head * p.width, channels, rows, p.width);
  }
  const float sum = sum_of_mine(sums);
  float products[Cell::kRecurrent];
#pragma unroll
  for (int j = 0; j < Cell::kRecurrent; ++j)
    products[j] = kNeurons > 1 ? sum : __shfl_sync(0xffffffff, sum, j * kRows + row);
  if (row >= rows || mine >= p.width || (kNeurons == 1 && lane >= kRows)) return;
  float gates[Cell::kGates], before[Cell::kStates], after[Cell::kStates];
  site.input(t, gates);
  site.before(t, before);
  if (!site.starts(t))
#pragma unroll
    for (int j = 0; j < Cell::kRecurrent; ++j) gates[j] += products[j];
  Cell::forward(gates, before, nullptr, after);
  site.output(t, gates, after);
}

// A CTA takes 4 neurons, a warp the products with one gate, a lane of the first one neuron of one sequence. `carried` has what
// the cell at token t + 1 sends back to the states behind token t; t = -1: the initial states.
template <class Cell, class T, int kVector>
__global__ void __launch_bounds__(kWarps * 32) step_backward(RnnCudaGradient q, int64_t t) {
  const RnnCuda& p = q.forward;
  const int lane = threadIdx.x % 32, row = lane % kRows;
  const int warp = threadIdx.x / 32;
  const int64_t neuron = int64_t{blockIdx.x} * kGroups, head = blockIdx.y;
  const int64_t first = int64_t{blockIdx.z} * kRows, channels = p.heads * p.width,
                mine = neuron + lane / kRows;
  __shared__ float parts[kWarps][32];
  const int rows = static_cast<int>(p.batch - first < kRows ? p.batch - first : kRows);
  const Site<Cell, T> site(p, first + row, head * p.width + mine);
  const bool last = t + 1 == p.tokens;

  float product = 0;
  if (!last) {
    float sums[kGroups * kRows] = {};
    const int groups = static_cast<int>(p.width - neuron < kGroups ? p.width - neuron : kGroups);
    const int64_t apart = p.tokens * Cell::kGates * channels;
    const T* dgates =
        static_cast<const T*>(q.dgates) + first * apart + (t + 1) * Cell::kGates * channels + head * p.width;
    static_assert(Cell::kRecurrent <= kWarps);
    if (warp < Cell::kRecurrent)
      add_products<kVector>(
          sums, static_cast<const T*>(p.recurrent) + ((warp * p.heads + head) * p.width + neuron) * p.width,
          p.width, groups, dgates + warp * channels, apart, rows, p.width);
    parts[warp][lane] = sum_of_mine(sums);
    __syncthreads();
#pragma unroll
    for (int w = 0; w < Cell::kRecurrent; ++w) product += parts[w][lane];
  }
  if (warp) return;
  if (row >= rows || mine >= p.width) return;
  float d[Cell::kStates];
#pragma unroll
  for (int i = 0; i < Cell::kStates; ++i)
    d[i] = (last ? q.dstate : q.carried)[i * site.plane + site.element()];
  d[0] += product;
  if (!last && site.starts(t + 1))
#pragma unroll
    for (int i = 0; i < Cell::kStates; ++i) d[i] = 0;
  if (t < 0) {
#pragma unroll
    for (int i = 0; i < Cell::kStates; ++i) q.dinitial[i * site.plane + site.element()] = d[i];
    return;
  }
  float gates[Cell::kGates], before[Cell::kStates], after[Cell::kStates], dg[Cell::kGates], ds[Cell::kStates];
  d[0] += to_float(static_cast<const T*>(q.dh)[(site.row * p.tokens + t) * channels + site.channel]);
  site.before(t, before);
#pragma unroll
  for (int i = 0; i < Cell::kStates; ++i)
    after[i] = p.states[(t * Cell::kStates + i) * site.plane + site.element()];
#pragma unroll
  for (int j = 0; j < Cell::kGates; ++j) gates[j] = site.saved(t, j);
  Cell::backward(gates, before, nullptr, after, d, dg, ds, nullptr);
#pragma unroll
  for (int i = 0; i < Cell::kStates; ++i) q.carried[i * site.plane + site.element()] = ds[i];
#pragma unroll
  for (int j = 0; j < Cell::kGates; ++j)
    static_cast<T*>(q.dgates)[((site.row * p.tokens + t) * Cell::kGates + j) * channels + site.channel] =
        from_float<T>(dg[j]);
}

constexpr int kThreads = 128;

template <class Cell, class T>
__global__ void __launch_bounds__(kThreads) walk_forward(RnnCuda p) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, channels = p.heads * p.width;
  if (i >= p.batch * channels) return;
  const Site<Cell, T> site(p, i / channels, i % channels);
  float a[Cell::kParameters + 1], before[Cell::kStates], after[Cell::kStates], gates[Cell::kGates];
  site.parameters(a);
  site.before(0, after);
  for (int64_t t = 0; t < p.tokens; ++t) {
    site.input(t, gates);
    const bool fresh = site.starts(t);
#pragma unroll
    for (int s = 0; s < Cell::kStates; ++s) before[s] = fresh ? 0.f : after[s];
    Cell::forward(gates, before, a, after);
    site.output(t, gates, after);
  }
}

template <class Cell, class T>
__global__ void __launch_bounds__(kThreads) walk_backward(RnnCudaGradient q) {
  const RnnCuda& p = q.forward;
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, channels = p.heads * p.width;
  if (i >= p.batch * channels) return;
  const Site<Cell, T> site(p, i / channels, i % channels);
  float a[Cell::kParameters + 1], da[Cell::kParameters + 1] = {}, before[Cell::kStates], after[Cell::kStates],
                                                         d[Cell::kStates], ds[Cell::kStates],
                                                         gates[Cell::kGates], dg[Cell::kGates];
  site.parameters(a);
#pragma unroll
  for (int s = 0; s < Cell::kStates; ++s) d[s] = q.dstate[s * site.plane + i];
  site.before(p.tokens, after);
  for (int64_t t = p.tokens - 1; t >= 0; --t) {
    site.before(t, before);
    d[0] += to_float(static_cast<const T*>(q.dh)[(site.row * p.tokens + t) * channels + site.channel]);
#pragma unroll
    for (int j = 0; j < Cell::kGates; ++j) gates[j] = site.saved(t, j);
    Cell::backward(gates, before, a, after, d, dg, ds, da);
#pragma unroll
    for (int j = 0; j < Cell::kGates; ++j)
      static_cast<T*>(q.dgates)[((site.row * p.tokens + t) * Cell::kGates + j) * channels + site.channel] =
          from_float<T>(dg[j]);
    const bool fresh = site.starts(t);
    const float* from = t ? p.states + (t - 1) * Cell::kStates * site.plane : p.initial;
#pragma unroll
    for (int s = 0; s < Cell::kStates; ++s) {
      d[s] = fresh ? 0.f : ds[s];
      after[s] = from && t ? from[s * site.plane + i] : 0.f;
    }
  }
#pragma unroll
  for (int s = 0; s < Cell::kStates; ++s) q.dinitial[s * site.plane + i] = d[s];
#pragma unroll
  for (int s = 0; s < Cell::kParameters; ++s)
    q.dparameter[(site.row * Cell::kParameters + s) * channels + site.channel] = da[s];
}

// A CTA has one token. X: what a thread moves at once.
template <class T, class X>
__global__ void __launch_bounds__(kThreads) copy_before(RnnCuda p, X* before) {
  constexpr int kNumbers = sizeof(X) / sizeof(T);
  const int64_t token = blockIdx.x, channels = p.heads * p.width, count = channels / kNumbers;
  const int64_t row = token / p.tokens;
  const bool fresh = p.starts && p.starts[token], first = token == row * p.tokens;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    X x = {};
    if (!fresh && !first) x = static_cast<const X*>(p.h)[(token - 1) * count + i];
    if (!fresh && first && p.initial)
#pragma unroll
      for (int n = 0; n < kNumbers; ++n)
        reinterpret_cast<T*>(&x)[n] = from_float<T>(p.initial[row * channels + i * kNumbers + n]);
    before[token * count + i] = x;
  }
}

bool has_matrix(const RnnCuda& p) { return p.cell != RnnCell::para_gru && p.cell != RnnCell::para_lstm; }

// `neurons` of a CTA.
dim3 step_grid(const RnnCuda& p, int neurons) {
  return dim3(static_cast<unsigned>((p.width + neurons - 1) / neurons), static_cast<unsigned>(p.heads),
              static_cast<unsigned>((p.batch + kRows - 1) / kRows));
}
// Calls body(std::integral_constant: numbers that can be read at once).
template <class Body>
void with_vector(const RnnCuda& p, const Body& body) {
  if (p.width % 4)
    body(std::integral_constant<int, 1>{});
  else
    body(std::integral_constant<int, 4>{});
}
unsigned walk_grid(const RnnCuda& p) {
  return static_cast<unsigned>((p.batch * p.heads * p.width + kThreads - 1) / kThreads);
}

}  // namespace

CudaStatus rnn_forward_any(const RnnCuda& p, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  return with_type(p.type, [&]<class T>(T) {
    if (!has_matrix(p))
      return with_para_cell(p.cell, [&]<class Cell>(Cell) {
        walk_forward<Cell, T><<<walk_grid(p), kThreads, 0, stream>>>(p);
        return last_status();
      });
    return with_matrix_cell<Precise>(p.cell, [&]<class Cell>(Cell) {
      with_vector(p, [&]<int kVector>(std::integral_constant<int, kVector>) {
        for (int64_t t = 0; t < p.tokens; ++t)
          step_forward<Cell, T, kVector>
              <<<step_grid(p, kWarps * kForwardNeurons<Cell>), kWarps * 32, 0, stream>>>(p, t);
      });
      return last_status();
    });
  });
}

CudaStatus rnn_backward_any(const RnnCudaGradient& q, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  const RnnCuda& p = q.forward;
  return with_type(p.type, [&]<class T>(T) {
    if (!has_matrix(p))
      return with_para_cell(p.cell, [&]<class Cell>(Cell) {
        walk_backward<Cell, T><<<walk_grid(p), kThreads, 0, stream>>>(q);
        return last_status();
      });
    return with_matrix_cell<Precise>(p.cell, [&]<class Cell>(Cell) {
      with_vector(p, [&]<int kVector>(std::integral_constant<int, kVector>) {
        for (int64_t t = p.tokens - 1; t >= -1; --t)
          step_backward<Cell, T, kVector><<<step_grid(p, kGroups), kWarps * 32, 0, stream>>>(q, t);
      });
      return last_status();
    });
  });
}

CudaStatus rnn_h_before(const RnnCuda& p, void* before, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  const auto tokens = static_cast<unsigned>(p.batch * p.tokens);
  return with_type(p.type, [&]<class T>(T) {
    if (p.heads * p.width * sizeof(T) % sizeof(uint4))
      copy_before<T><<<tokens, kThreads, 0, stream>>>(p, static_cast<T*>(before));
    else
      copy_before<T><<<tokens, kThreads, 0, stream>>>(p, static_cast<uint4*>(before));
    return last_status();
  });
}

const RnnCudaKernels& rnn_cuda_kernels() {
  static const RnnCudaKernels table{rnn_forward_any,    rnn_backward_any, rnn_forward_fused,
                                    rnn_backward_fused, rnn_forward_wide, rnn_backward_wide,
                                    rnn_h_before};
  return table;
}

}  // namespace weft::kernels
