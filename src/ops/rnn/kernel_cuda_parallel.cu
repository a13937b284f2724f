// Newton's method in one pass over memory: a CTA has 32 channels of a sequence, one a lane, and takes all iterations on a
// chunk of tokens before it goes on to the next, to which it hands the last state of every iterate. In a chunk each warp
// has kOwn tokens. A linear recurrence runs in three parts: each warp composes the maps of its tokens, finds what reaches
// its first token through the warps before it, and runs its tokens.
#include <cuda_runtime.h>

#include "ops/cuda/device.cuh"
#include "ops/rnn/cells.cuh"
#include "ops/rnn/kernel_cuda_parallel.h"

namespace weft::kernels {
namespace {

constexpr int kLanes = 32, kWarps = 16, kThreads = kLanes * kWarps, kOwn = 4, kChunk = kWarps * kOwn;

template <int kStates>
struct Vector {
  float x[kStates];
};

// d = j d + r; only r when nothing passes.
template <int kStates>
__device__ __forceinline__ void advance(float (&d)[kStates], const float (&j)[kStates][kStates],
                                        const float (&r)[kStates], bool cut) {
  float sum[kStates];
#pragma unroll
  for (int i = 0; i < kStates; ++i) {
    sum[i] = r[i];
#pragma unroll
    for (int k = 0; k < kStates; ++k) sum[i] += j[i][k] * d[k];
  }
#pragma unroll
  for (int i = 0; i < kStates; ++i) d[i] = cut ? r[i] : sum[i];
}

// d -> A d + b
template <int kStates>
struct Affine {
  float a[kStates][kStates], b[kStates];

  __device__ static Affine identity() {
    Affine map = {};
#pragma unroll
    for (int i = 0; i < kStates; ++i) map.a[i][i] = 1;
    return map;
  }
  __device__ void apply(float (&d)[kStates]) const { advance(d, a, b, false); }
  // This map, then d -> j d + r; only r when nothing passes.
  __device__ void then(const float (&j)[kStates][kStates], const float (&r)[kStates], bool cut) {
    float columns[kStates][kStates];
    const Affine last{*this};
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      float sum = r[i];
#pragma unroll
      for (int k = 0; k < kStates; ++k) {
        sum += j[i][k] * last.b[k];
        columns[i][k] = 0;
#pragma unroll
        for (int m = 0; m < kStates; ++m) columns[i][k] += j[i][m] * last.a[m][k];
      }
      b[i] = cut ? r[i] : sum;
    }
#pragma unroll
    for (int i = 0; i < kStates; ++i)
#pragma unroll
      for (int k = 0; k < kStates; ++k) a[i][k] = cut ? 0.f : columns[i][k];
  }
};

template <class Cell>
struct Shared {
  Affine<Cell::kStates> maps[kWarps][kLanes];
  Vector<Cell::kStates> last[kWarps + 1][kLanes];  // state behind the tokens of warp w - 1
  float worst[kWarps][kLanes];
};

// The channel of a lane, which may lie beyond the last; then it is kept from reading and writing.
template <class Cell, class T>
struct Channel {
  const RnnParallelCuda& p;
  int64_t sequence, channel;
  bool exists;
  float bias[Cell::kGates], a[Cell::kParameters];

  __device__ explicit Channel(const RnnParallelCuda& problem)
      : p(problem), sequence(blockIdx.y), channel(int64_t{blockIdx.x} * kLanes + threadIdx.x % kLanes) {
    exists = channel < p.channels;
#pragma unroll
    for (int j = 0; j < Cell::kGates; ++j)
      bias[j] = p.bias && exists ? p.bias[j * p.channels + channel] : 0.f;
#pragma unroll
    for (int i = 0; i < Cell::kParameters; ++i) a[i] = exists ? p.parameter[i * p.channels + channel] : 0.f;
  }
  __device__ bool starts(int64_t t) const { return p.starts && p.starts[sequence * p.tokens + t]; }
  __device__ void gates(float (&g)[Cell::kGates], int64_t t) const {
    const T* x =
        static_cast<const T*>(p.wx) + (sequence * p.tokens + t) * Cell::kGates * p.channels + channel;
#pragma unroll
    for (int j = 0; j < Cell::kGates; ++j) g[j] = (exists ? to_float(x[j * p.channels]) : 0.f) + bias[j];
  }
  __device__ void initial(float (&s)[Cell::kStates]) const {
#pragma unroll
    for (int i = 0; i < Cell::kStates; ++i)
      s[i] = p.initial && exists ? p.initial[(i * p.batch + sequence) * p.channels + channel] : 0.f;
  }
  __device__ void put(const float (&s)[Cell::kStates], int64_t t) const {
    if (!exists) return;
    static_cast<T*>(p.h)[(sequence * p.tokens + t) * p.channels + channel] = from_float<T>(s[0]);
#pragma unroll
    for (int i = 0; i < Cell::kStates; ++i) {
      if (p.trajectory)
        p.trajectory[((sequence * p.tokens + t) * Cell::kStates + i) * p.channels + channel] = s[i];
      if (t == p.tokens - 1) p.state[(i * p.batch + sequence) * p.channels + channel] = s[i];
    }
  }
};

template <int kCount>
__device__ __forceinline__ void assign(float (&to)[kCount], const float (&from)[kCount], bool zero = false) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = zero ? 0.f : from[i];
}

// The channels of a warp token by token; inputs are fetched a few tokens at a time.
template <class Cell, class T>
__device__ void walk(const Channel<Cell, T>& at) {
  constexpr int kAhead = 8;
  float s[Cell::kStates], after[Cell::kStates], g[kAhead][Cell::kGates];
  bool fresh[kAhead];
  at.initial(s);
  for (int64_t first = 0; first < at.p.tokens; first += kAhead) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= at.p.tokens) continue;
      at.gates(g[i], first + i);
      fresh[i] = at.starts(first + i);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (first + i >= at.p.tokens) continue;
      assign(s, s, fresh[i]);
      Cell::forward(g[i], s, at.a, after);
      assign(s, after);
      at.put(s, first + i);
    }
  }
}

template <class Cell, class T>
__global__ void __launch_bounds__(kThreads) parallel_forward(RnnParallelCuda p) {
  constexpr int kStates = Cell::kStates;
  __shared__ Shared<Cell> shared;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const Channel<Cell, T> at(p);
  // of iterate k, the state behind the chunk before
  auto* carried = reinterpret_cast<float(*)[kStates][kLanes]>(p.carried) +
                  (at.sequence * gridDim.x + blockIdx.x) * (p.iterations + 1);
  const auto get_carried = [&](float(&s)[kStates], int64_t k) {
#pragma unroll
    for (int i = 0; i < kStates; ++i) s[i] = carried[k][i][lane];
  };
  if (warp == kWarps - 1) {
    float s[kStates];
    at.initial(s);
    for (int64_t k = 0; k <= p.iterations; ++k)
#pragma unroll
      for (int i = 0; i < kStates; ++i) carried[k][i][lane] = s[i];
  }
  float worst = 0;
  for (int64_t chunk = 0; chunk < p.tokens; chunk += kChunk) {
    const int64_t first = chunk + warp * kOwn;
    float g[kOwn][Cell::kGates], s[kOwn][kStates];
    bool fresh[kOwn], live[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      live[i] = first + i < p.tokens;
      fresh[i] = live[i] && at.starts(first + i);
      if (live[i]) at.gates(g[i], first + i);
      float work[Cell::kGates], nothing[kStates] = {};
      assign(work, g[i], !live[i]);
      Cell::forward(work, nothing, at.a, s[i]);
    }
    for (int64_t k = 0; k <= p.iterations; ++k) {
      // The last state of every warp in iterate k; that of the last warp is what the next chunk starts from, after the
      // one of this chunk was read.
      assign(shared.last[warp + 1][lane].x, s[kOwn - 1]);
      __syncthreads();
      float before[kStates], d[kStates] = {};
      if (warp) {
        assign(before, shared.last[warp][lane].x);
      } else {
        get_carried(before, k);
      }
      float next[kStates] = {};
      if (k < p.iterations) get_carried(next, k + 1);
      float start[kStates];
      get_carried(start, k);
#pragma unroll
      for (int i = 0; i < kStates; ++i) d[i] = next[i] - start[i];
      float j[kOwn][kStates][kStates], r[kOwn][kStates];
      auto map = Affine<kStates>::identity();
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        float work[Cell::kGates], from[kStates], after[kStates];
        assign(work, g[i]);
        assign(from, i ? s[i ? i - 1 : 0] : before, fresh[i]);
        Cell::linearize(work, from, at.a, after, j[i]);
#pragma unroll
        for (int m = 0; m < kStates; ++m) r[i][m] = after[m] - s[i][m];
        if (live[i]) {
          if (k == p.iterations)
#pragma unroll
            for (int m = 0; m < kStates; ++m) {
              const float size = fabsf(r[i][m]);
              worst = size <= 3e38f ? fmaxf(worst, size) : __int_as_float(0x7f800000);
            }
          map.then(j[i], r[i], fresh[i]);
        }
      }
      shared.maps[warp][lane] = map;
      __syncthreads();
      if (warp == kWarps - 1)
#pragma unroll
        for (int i = 0; i < kStates; ++i) carried[k][i][lane] = shared.last[kWarps][lane].x[i];
      if (k == p.iterations) break;
      for (int w = 0; w < warp; ++w) shared.maps[w][lane].apply(d);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if (!live[i]) continue;
        advance(d, j[i], r[i], fresh[i]);
#pragma unroll
        for (int m = 0; m < kStates; ++m) s[i][m] += d[m];
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < kOwn; ++i)
      if (live[i]) at.put(s[i], first + i);
    __syncthreads();
  }
  shared.worst[warp][lane] = at.exists ? worst : 0.f;
  __syncthreads();
  if (warp) return;
  for (int w = 1; w < kWarps; ++w) worst = fmaxf(worst, shared.worst[w][lane]);
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2)
    worst = fmaxf(worst, __shfl_xor_sync(0xffffffff, worst, step));
  if (worst > p.tolerance) walk(at);
  if (lane == 0) p.residual[at.sequence * gridDim.x + blockIdx.x] = worst;
}

// With u_t what token t + 1 sends back to the state behind token t: l_t = e_t + u_t, u_{t-1} = J_t' l_t. Chunks, and the
// warps in them, are taken from the last to the first.
template <class Cell, class T>
__global__ void __launch_bounds__(kThreads) parallel_backward(RnnParallelCudaGradient q) {
  constexpr int kStates = Cell::kStates;
  const RnnParallelCuda& p = q.forward;
  __shared__ Affine<kStates> maps[kWarps][kLanes];
  __shared__ float parts[kWarps][Cell::kParameters][kLanes];
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const Channel<Cell, T> at(p);
  float u[kStates], da[Cell::kParameters] = {};
#pragma unroll
  for (int i = 0; i < kStates; ++i)
    u[i] = at.exists ? q.dstate[(i * p.batch + at.sequence) * p.channels + at.channel] : 0.f;
  for (int64_t chunk = (p.tokens - 1) / kChunk * kChunk; chunk >= 0; chunk -= kChunk) {
    const int64_t first = chunk + warp * kOwn;
    float g[kOwn][Cell::kGates], before[kOwn][kStates], after[kOwn][kStates], e[kOwn][kStates] = {};
    float j[kOwn][kStates][kStates];  // transposed
    bool fresh[kOwn], live[kOwn];
    auto map = Affine<kStates>::identity();
    const auto saved = [&](float(&s)[kStates], int64_t t) {
#pragma unroll
      for (int i = 0; i < kStates; ++i)
        s[i] = at.exists
                   ? p.trajectory[((at.sequence * p.tokens + t) * kStates + i) * p.channels + at.channel]
                   : 0.f;
    };
#pragma unroll
    for (int i = kOwn - 1; i >= 0; --i) {
      const int64_t t = first + i;
      live[i] = t < p.tokens;
      fresh[i] = live[i] && at.starts(t);
      if (!live[i]) continue;
      at.gates(g[i], t);
      if (t)
        saved(before[i], t - 1);
      else
        at.initial(before[i]);
      assign(before[i], before[i], fresh[i]);
      saved(after[i], t);
      if (at.exists)
        e[i][0] =
            to_float(static_cast<const T*>(q.dh)[(at.sequence * p.tokens + t) * p.channels + at.channel]);
      float jacobian[kStates][kStates], found[kStates], zero[kStates] = {};
      Cell::linearize(g[i], before[i], at.a, found, jacobian);
      // u -> J' (e + u)
#pragma unroll
      for (int m = 0; m < kStates; ++m)
#pragma unroll
        for (int n = 0; n < kStates; ++n) j[i][m][n] = jacobian[n][m];
      float sent[kStates];
      assign(sent, e[i]);
      advance(sent, j[i], zero, fresh[i]);
      map.then(j[i], sent, fresh[i]);
    }
    maps[warp][lane] = map;
    __syncthreads();
    float reached[kStates];
    assign(reached, u);
    for (int w = kWarps - 1; w >= 0; --w) {
      if (w == warp) assign(reached, u);
      maps[w][lane].apply(u);
    }
#pragma unroll
    for (int i = kOwn - 1; i >= 0; --i) {
      if (!live[i]) continue;
      float l[kStates], dg[Cell::kGates], sent[kStates];
#pragma unroll
      for (int m = 0; m < kStates; ++m) l[m] = e[i][m] + reached[m];
      Cell::backward(g[i], before[i], at.a, after[i], l, dg, sent, da);
      assign(reached, sent, fresh[i]);
      if (at.exists)
#pragma unroll
        for (int m = 0; m < Cell::kGates; ++m)
          static_cast<T*>(
              q.dwx)[((at.sequence * p.tokens + first + i) * Cell::kGates + m) * p.channels + at.channel] =
              from_float<T>(dg[m]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < Cell::kParameters; ++i) parts[warp][i][lane] = da[i];
  __syncthreads();
  if (!at.exists || warp) return;
#pragma unroll
  for (int i = 0; i < kStates; ++i) q.dinitial[(i * p.batch + at.sequence) * p.channels + at.channel] = u[i];
#pragma unroll
  for (int i = 0; i < Cell::kParameters; ++i) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += parts[w][i][lane];
    q.dparameter[(at.sequence * Cell::kParameters + i) * p.channels + at.channel] = sum;
  }
}

dim3 grid_of(const RnnParallelCuda& p) {
  return dim3(static_cast<unsigned>(rnn_parallel_cuda_blocks(p.channels)), static_cast<unsigned>(p.batch));
}

}  // namespace

CudaStatus rnn_parallel_forward_cuda(const RnnParallelCuda& p, void* stream) {
  return with_type(p.type, [&]<class T>(T) {
    return with_para_cell(p.cell, [&]<class Cell>(Cell) {
      parallel_forward<Cell, T><<<grid_of(p), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
      return last_status();
    });
  });
}

CudaStatus rnn_parallel_backward_cuda(const RnnParallelCudaGradient& q, void* stream) {
  return with_type(q.forward.type, [&]<class T>(T) {
    return with_para_cell(q.forward.cell, [&]<class Cell>(Cell) {
      parallel_backward<Cell, T><<<grid_of(q.forward), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(q);
      return last_status();
    });
  });
}

const RnnParallelCudaKernels& rnn_parallel_cuda_kernels() {
  static const RnnParallelCudaKernels table{rnn_parallel_forward_cuda, rnn_parallel_backward_cuda};
  return table;
}

}  // namespace weft::kernels
