// The recurrence of RWKV-4. A thread walks over the tokens of one channel; loads of the next tokens are on their way
// meanwhile. The backward pass makes the states of a chunk again from the one that was saved before it.
#include "ops/cuda/vector.cuh"
#include "ops/scan/kernel_cuda_wkv.h"

namespace weft::kernels {
namespace {

constexpr int kThreads = 128, kChunk = kCudaWkvChunk;
constexpr float kNothing = -1e38f;  // the exponent of a state that has seen nothing

__device__ __forceinline__ float exponential(float x) { return fast_exp2(x * kLog2e); }

// (a, b) e^m: weighted sum of values and sum of weights.
struct State {
  float a = 0.0f, b = 0.0f, m = kNothing;

  __device__ void load(const float* from, int64_t stride) {
    if (from) a = from[0], b = from[stride], m = from[2 * stride];
  }
  __device__ void store(float* to, int64_t stride) const { to[0] = a, to[stride] = b, to[2 * stride] = m; }
};

// What a token does with the state before it.
struct Token {
  float past, now, inverse;  // weights of the state and of the token in y; 1 / their sum
  float keep, write;         // weights of the state and of the token in the next state
  bool wins;                 // the token has the largest exponent

  __device__ __forceinline__ Token(const State& s, float k, float w, float u) {
    const float top = fmaxf(s.m, u + k), next = fmaxf(s.m + w, k);
    past = exponential(s.m - top), now = exponential(u + k - top);
    inverse = 1.0f / fmaf(past, s.b, now);
    keep = exponential(s.m + w - next), write = exponential(k - next);
    wins = k > s.m + w;
  }
  __device__ __forceinline__ float output(const State& s, float v) const {
    return fmaf(past, s.a, now * v) * inverse;
  }
  __device__ __forceinline__ void advance(State& s, float k, float v, float w) const {
    s.a = fmaf(keep, s.a, write * v), s.b = fmaf(keep, s.b, write);
    s.m = wins ? k : s.m + w;
  }
};

// Bit i: a document starts at token t + i. Every lane of the warp must come along.
__device__ __forceinline__ unsigned starts_at(const CudaWkv& p, int64_t sequence, int64_t t) {
  if (!p.starts) return 0;
  const int lane = threadIdx.x % 32;
  return __ballot_sync(0xffffffff,
                       lane < kChunk && t + lane < p.tokens && p.starts[sequence * p.tokens + t + lane] != 0);
}

template <class T>
struct Rows {
  T at[kChunk];
  // Behind the last token it is loaded again: a condition on what was loaded would wait for it.
  __device__ __forceinline__ void load(const void* from, int64_t first, int64_t t, int64_t end,
                                       int64_t stride) {
#pragma unroll
    for (int j = 0; j < kChunk; ++j)
      at[j] = static_cast<const T*>(from)[first + min(t + j, end - 1) * stride];
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads) forward_kernel(const CudaWkv p) {
  const int64_t blocks = (p.channels + kThreads - 1) / kThreads, sequence = blockIdx.x / blocks;
  const int64_t wanted = blockIdx.x % blocks * kThreads + threadIdx.x, channel = min(wanted, p.channels - 1);
  const bool there = wanted < p.channels;
  const int64_t first = sequence * p.tokens * p.channels + channel, chunks = (p.tokens + kChunk - 1) / kChunk;
  const float w = p.w[channel], u = p.u[channel];
  State s;
  s.load(p.initial ? p.initial + sequence * 3 * p.channels + channel : nullptr, p.channels);
  Rows<T> next_k, next_v;
  if (p.tokens > 0) {
    next_k.load(p.k, first, 0, p.tokens, p.channels);
    next_v.load(p.v, first, 0, p.tokens, p.channels);
  }
  for (int64_t t = 0; t < p.tokens; t += kChunk) {
    const Rows<T> keys = next_k, values = next_v;
    next_k.load(p.k, first, t + kChunk, p.tokens, p.channels);
    next_v.load(p.v, first, t + kChunk, p.tokens, p.channels);
    const unsigned starts = starts_at(p, sequence, t);
    if (p.saved && there)
      s.store(p.saved + (sequence * chunks + t / kChunk) * 3 * p.channels + channel, p.channels);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      if (t + j >= p.tokens) break;
      if (starts >> j & 1) s = State{};
      const float k = to_float(keys.at[j]), v = to_float(values.at[j]);
      const Token token(s, k, w, u);
      if (there) static_cast<T*>(p.y)[first + (t + j) * p.channels] = from_float<T>(token.output(s, v));
      token.advance(s, k, v, w);
    }
  }
  if (there) s.store(p.state + sequence * 3 * p.channels + channel, p.channels);
}

// With ga, gb the gradients of a and b of the state behind a token and gm that of its exponent where a and b are held in
// their own scale: y and the next state give
//   ga' = keep ga + past dy / sum        gb' = keep gb - past dy y / sum
//   dk = now dy (v - y) / sum + write (ga v + gb)        dv = now dy / sum + write ga
// and gm goes to the key when it has the largest exponent, else to the state before and to w.
template <class T>
__global__ void __launch_bounds__(kThreads) backward_kernel(const CudaWkvGradient g) {
  const CudaWkv& p = g.forward;
  const int64_t blocks = (p.channels + kThreads - 1) / kThreads, sequence = blockIdx.x / blocks;
  const int64_t wanted = blockIdx.x % blocks * kThreads + threadIdx.x, channel = min(wanted, p.channels - 1);
  const bool there = wanted < p.channels;
  const int64_t first = sequence * p.tokens * p.channels + channel, chunks = (p.tokens + kChunk - 1) / kChunk;
  const int64_t outer = sequence * 3 * p.channels + channel;
  const float w = p.w[channel], u = p.u[channel];
  State s, d;
  s.load(p.state + outer, p.channels);
  d.load(g.dstate + outer, p.channels);
  float ga = d.a, gb = d.b, gm = d.m - s.a * d.a - s.b * d.b, dw = 0.0f, du = 0.0f;
  Rows<T> next_k, next_v, next_d;
  const auto fetch = [&](int64_t t) {
    next_k.load(p.k, first, t, p.tokens, p.channels);
    next_v.load(p.v, first, t, p.tokens, p.channels);
    next_d.load(g.dy, first, t, p.tokens, p.channels);
  };
  if (chunks > 0) fetch((chunks - 1) * kChunk);
  for (int64_t chunk = chunks - 1; chunk >= 0; --chunk) {
    const int64_t t = chunk * kChunk;
    const Rows<T> keys = next_k, values = next_v, ups = next_d;
    if (chunk > 0) fetch(t - kChunk);
    const unsigned starts = starts_at(p, sequence, t);
    State before[kChunk];
    s.load(p.saved + (sequence * chunks + chunk) * 3 * p.channels + channel, p.channels);
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      if (t + j >= p.tokens) break;
      if (starts >> j & 1) s = State{};
      before[j] = s;
      const float k = to_float(keys.at[j]);
      Token(s, k, w, u).advance(s, k, to_float(values.at[j]), w);
    }
#pragma unroll
    for (int j = kChunk - 1; j >= 0; --j) {
      if (t + j >= p.tokens) continue;
      const float k = to_float(keys.at[j]), v = to_float(values.at[j]), dy = to_float(ups.at[j]);
      const State& old = before[j];
      const Token token(old, k, w, u);
      const float y = token.output(old, v), share = dy * token.inverse;
      const float bonus = token.now * share * (v - y);
      float dk = fmaf(token.write, fmaf(ga, v, gb), bonus);
      const float dv = fmaf(token.write, ga, token.now * share);
      du += bonus;
      dw += token.keep * fmaf(ga, old.a, gb * old.b);
      if (token.wins) {
        dk += gm;
        gm = 0.0f;
      } else {
        dw += gm;
      }
      ga = fmaf(token.keep, ga, token.past * share);
      gb = fmaf(token.keep, gb, -token.past * share * y);
      if (starts >> j & 1) ga = gb = gm = 0.0f;
      if (there) {
        static_cast<T*>(g.dk)[first + (t + j) * p.channels] = from_float<T>(dk);
        static_cast<T*>(g.dv)[first + (t + j) * p.channels] = from_float<T>(dv);
      }
    }
  }
  if (!there) return;
  g.dw[sequence * p.channels + channel] = dw, g.du[sequence * p.channels + channel] = du;
  State initial;
  initial.load(p.initial ? p.initial + outer : nullptr, p.channels);
  State{ga, gb, gm + ga * initial.a + gb * initial.b}.store(g.dinitial + outer, p.channels);
}

unsigned grid_of(const CudaWkv& p) {
  return static_cast<unsigned>(p.batch * ((p.channels + kThreads - 1) / kThreads));
}

CudaStatus forward(const CudaWkv& p, void* stream) {
  if (p.batch * p.channels == 0) return nullptr;
  return with_type(p.type, [&]<class T>(T) {
    forward_kernel<T><<<grid_of(p), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
    return last_status();
  });
}

CudaStatus backward(const CudaWkvGradient& g, void* stream) {
  if (g.forward.batch * g.forward.channels == 0) return nullptr;
  return with_type(g.forward.type, [&]<class T>(T) {
    backward_kernel<T><<<grid_of(g.forward), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(g);
    return last_status();
  });
}

constexpr WkvCuda kTable = {forward, backward};

}  // namespace

const WkvCuda& wkv_cuda() { return kTable; }

}  // namespace weft::kernels
