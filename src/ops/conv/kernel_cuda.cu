// Short causal convolution. A thread owns a few neighbouring channels and walks over a tile of tokens with the last
// inputs, and in the backward pass the unfinished gradients of the last inputs, in registers. The lanes of a warp are
// neighbours in the row; the warps of a block have tiles that follow each other.
#include "ops/conv/kernel_cuda.h"

#include <algorithm>
#include <initializer_list>

#include "ops/conv/short_conv.cuh"

namespace weft::kernels {
namespace {

// The inputs that the next tokens need; ascending, for the state may be written over the one before.
template <class T, int kTaps, int kVector>
__device__ void write_state(const CudaShortConv& p, const Walk& w, const Reader<T, kTaps, kVector>& in) {
  const int64_t past = p.width - 1;
  T* const state = static_cast<T*>(p.state) + w.sequence * past * p.channels + w.channel;
  for (int64_t i = 0; i < past; ++i) {
    const int row = static_cast<int>(p.tokens - past + i);
    float x[kVector];
    widen(x, in.any_row(row));
    if (p.tokens - 1 - row > w.seen)
#pragma unroll
      for (int j = 0; j < kVector; ++j) x[j] = 0.0f;
    store_pack(state + i * p.channels, x);
  }
}

template <class T, int kTaps, int kVector>
__global__ void __launch_bounds__(32 * kWarps, kTaps == 4 ? 4 : 2)
    forward_kernel(const CudaShortConv p, int tile) {
  Walk w = walk_of(p, tile, kVector);
  if (w.channel >= p.channels || w.begin >= p.tokens) return;
  const Reader<T, kTaps, kVector> in(p, w);
  Taps<kTaps, kVector> taps;
  float last[kTaps - 1][kVector];
  Pack<T, kVector> rows[kAhead];
#pragma unroll
  for (int j = 0; j < kAhead; ++j) rows[j] = in.row(w.begin + j);
  taps.load(p, w.channel);
  in.enter(w, last);
  const int end = min(w.end, in.tokens);
  T* const y = static_cast<T*>(p.y) + w.sequence * p.tokens * p.channels + w.channel;
  for (int group = w.begin; group < end; group += kAhead) {
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      const int t = group + j;
      in.advance(w, t);
      float now[kVector], sum[kVector];
      widen(now, rows[j]);
      if (t + kAhead < end) rows[j] = in.row(t + kAhead);
      taps.sums(sum, now, last, min(w.seen, static_cast<int>(p.width) - 1));
      if (p.silu)
#pragma unroll
        for (int i = 0; i < kVector; ++i) sum[i] *= sigmoid(sum[i]);
      if (t < end) store_pack(y + int64_t{t} * p.channels, sum);
      push(last, now);
    }
  }
  if (p.state && end == in.tokens) write_state(p, w, in);
}

// Gradients of the taps of one thread, summed over its tokens.
template <int kTaps, int kVector>
struct TapSums {
  float weight[kTaps][kVector] = {}, bias[kVector] = {};
};

// Adds up those of the block's warps in order and writes them as rows of `partial`.
template <int kTaps, int kVector>
__device__ void write_tap_sums(const CudaShortConvGradient& g, const Walk& w,
                               const TapSums<kTaps, kVector>& sums) {
  __shared__ float shared[kWarps][kVector][33];
  const auto& p = g.forward;
  const int64_t groups = (p.channels + 32 * kVector - 1) / (32 * kVector);
  float* const out = g.partial + blockIdx.x / groups * (p.width + 1) * p.channels;
  const int64_t first = blockIdx.x % groups * 32 * kVector;
  const auto add = [&](const float(&row)[kVector], int64_t index) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) shared[threadIdx.y][i][threadIdx.x] = row[i];
    __syncthreads();
    for (int c = threadIdx.y * 32 + threadIdx.x; c < 32 * kVector; c += 32 * kWarps) {
      float sum = 0;
#pragma unroll
      for (int v = 0; v < kWarps; ++v) sum += shared[v][c % kVector][c / kVector];
      if (first + c < p.channels) out[index * p.channels + first + c] = sum;
    }
    __syncthreads();
  };
#pragma unroll
  for (int s = 0; s < kTaps; ++s)
    if (s < p.width) add(sums.weight[s], p.width - 1 - s);
  add(sums.bias, p.width);
}

template <class T, int kTaps, int kVector>
struct Backward {
  const CudaShortConvGradient& g;
  const Reader<T, kTaps, kVector> in;
  const T* dy;
  T* dx;
  Walk w;
  Taps<kTaps, kVector> taps;
  float last[kTaps - 1][kVector];       // inputs
  float open[kTaps - 1][kVector] = {};  // gradients of those so far
  TapSums<kTaps, kVector> sums;

  __device__ Backward(const CudaShortConvGradient& gradient, const Walk& walk)
      : g(gradient), in(gradient.forward, walk), w(walk) {
    const int64_t first = w.sequence * g.forward.tokens * g.forward.channels + w.channel;
    dy = static_cast<const T*>(g.dy) + first;
    dx = g.dx ? static_cast<T*>(g.dx) + first : nullptr;
    taps.load(g.forward, w.channel);
    in.enter(w, last);
  }

  __device__ __forceinline__ Pack<T, kVector> upstream(int t) const {
    return t < in.tokens ? load_pack<kVector>(dy + int64_t{t} * g.forward.channels) : no_pack<T, kVector>();
  }

  // The gradient of row t is complete.
  __device__ __forceinline__ void emit(int t, const float (&gradient)[kVector]) const {
    const auto& p = g.forward;
    const int past = static_cast<int>(p.width) - 1, kept = t - (in.tokens - past);
    if (t < (w.begin == 0 ? -past : w.begin) || t >= in.tokens || t >= w.end) return;
    float sum[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum[i] = gradient[i];
    if (g.dstate && kept >= 0 && in.tokens - 1 - t <= w.seen) {
      float more[kVector];
      load_floats(more,
                  static_cast<const T*>(g.dstate) + (w.sequence * past + kept) * p.channels + w.channel);
#pragma unroll
      for (int i = 0; i < kVector; ++i) sum[i] += more[i];
    }
    if (t >= 0 && dx) store_pack(dx + int64_t{t} * p.channels, sum);
    if (t < 0 && g.dbefore)
      store_pack(static_cast<T*>(g.dbefore) + (w.sequence * past + past + t) * p.channels + w.channel, sum);
  }

  // Token t, which may lie behind the last; kOwn: it is one of this tile, whose taps' gradients count.
  template <bool kOwn>
  __device__ __forceinline__ void token(int t, const Pack<T, kVector>& row, const Pack<T, kVector>& up) {
    const auto& p = g.forward;
    in.advance(w, t);
    const int reach = min(w.seen, static_cast<int>(p.width) - 1);
    float now[kVector], d[kVector], sum[kVector];
    widen(now, row);
    widen(d, up);
    if (p.silu) {
      taps.sums(sum, now, last, reach);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const float gate = sigmoid(sum[i]);
        d[i] *= gate * fmaf(sum[i], 1.0f - gate, 1.0f);
      }
    }
    if (t >= in.tokens)
#pragma unroll
      for (int i = 0; i < kVector; ++i) d[i] = 0.0f;
    float fresh[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      fresh[i] = taps.weight[0][i] * d[i];
      if (kOwn) sums.weight[0][i] = fmaf(d[i], now[i], sums.weight[0][i]);
      if (kOwn) sums.bias[i] += d[i];
    }
#pragma unroll
    for (int s = 1; s < kTaps; ++s)
      if (s <= reach)
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          open[s - 1][i] = fmaf(taps.weight[s][i], d[i], open[s - 1][i]);
          if (kOwn) sums.weight[s][i] = fmaf(d[i], last[s - 1][i], sums.weight[s][i]);
        }
    emit(t - (kTaps - 1), open[kTaps - 2]);
    push(open, fresh);
    push(last, now);
  }

  __device__ __forceinline__ void run() {
    Pack<T, kVector> rows[kGroup], ups[kGroup];
#pragma unroll
    for (int j = 0; j < kGroup; ++j) rows[j] = in.row(w.begin + j), ups[j] = upstream(w.begin + j);
    const int end = min(w.end, in.tokens);
    int t = w.begin;
    for (; t < end; t += kGroup) {
      Pack<T, kVector> x[kGroup], d[kGroup];
#pragma unroll
      for (int j = 0; j < kGroup; ++j) x[j] = rows[j], d[j] = ups[j];
#pragma unroll
      for (int j = 0; j < kGroup; ++j) rows[j] = in.row(t + kGroup + j), ups[j] = upstream(t + kGroup + j);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) token<true>(t + j, x[j], d[j]);
    }
    for (const int stop = t + kTaps - 1; t < stop; ++t) token<false>(t, in.row(t), upstream(t));
  }
};

template <class T, int kTaps, int kVector>
__global__ void __launch_bounds__(32 * kWarps, kTaps == 4 ? 4 : 2)
    backward_kernel(const CudaShortConvGradient g, int tile) {
  const Walk w = walk_of(g.forward, tile, kVector);
  TapSums<kTaps, kVector> sums;
  if (w.channel < g.forward.channels && w.begin < g.forward.tokens) {
    Backward<T, kTaps, kVector> walk(g, w);
    walk.run();
    sums = walk.sums;
  }
  if (g.partial) write_tap_sums(g, w, sums);
}

constexpr int kSumLanes = 8;

// Gradients of the taps: sums over the blocks in order.
__global__ void __launch_bounds__(32 * kSumLanes)
    tap_kernel(const CudaShortConvGradient g, int64_t partials) {
  __shared__ float shared[kSumLanes][32];
  const auto& p = g.forward;
  const int64_t channel = int64_t{blockIdx.x} * 32 + threadIdx.x, tap = blockIdx.y;
  float sum = 0;
  if (channel < p.channels) {
    const float* const from = g.partial + tap * p.channels + channel;
#pragma unroll 4
    for (int64_t i = threadIdx.y; i < partials; i += kSumLanes) sum += from[i * (p.width + 1) * p.channels];
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y || channel >= p.channels) return;
  for (int i = 1; i < kSumLanes; ++i) sum += shared[i][threadIdx.x];
  if (tap < p.width) {
    if (g.dweight) set_element(g.dweight, p.weight_type, channel * p.width + tap, sum);
  } else if (g.dbias) {
    set_element(g.dbias, p.bias_type, channel, sum);
  }
}

template <int kVector>
int64_t groups_of(const CudaShortConv& p) {
  return (p.channels + 32 * kVector - 1) / (32 * kVector);
}

// Tokens of a warp: fewer where there are so few rows that blocks would not fill a device.
int tile_of(const CudaShortConv& p) {
  constexpr int64_t kEnough = 480;
  const int64_t groups = groups_of<kBytes / 2>(p) * p.batch;
  int tile = 128;
  while (tile > 16 && tiles_of(p, tile) * groups < kEnough) tile /= 2;
  return tile;
}
int64_t partials(const CudaShortConv& p) { return p.batch * tiles_of(p, tile_of(p)); }

template <int kVector>
dim3 grid_of(const CudaShortConv& p, int tile) {
  return dim3(static_cast<unsigned>(p.batch * tiles_of(p, tile) * groups_of<kVector>(p)));
}

// Calls body.run<taps, vector>() with the fewest taps that hold the width; accesses of kBytes when rows allow it.
template <int kElement, class Body>
void with_taps(const CudaShortConv& p, bool aligned, const Body& body) {
  constexpr int kWide = kBytes / kElement;
  if (!aligned) return body.template operator()<16, 1>();
  if (p.width <= 4) return body.template operator()<4, kWide>();
  if (p.width <= 8) return body.template operator()<8, std::min(kWide, 4)>();
  return body.template operator()<16, 2>();
}

bool aligned_to(const CudaShortConv& p, std::initializer_list<const void*> data) {
  const int64_t element = p.type == CudaType::fp32 ? 4 : 2;
  const auto width = static_cast<int>(kBytes / element);
  bool all = p.channels % width == 0 && packs(p.x, p.x_token, width, element) && p.x_batch % width == 0;
  for (const void* x : data) all = all && packs(x, 0, width, element);
  return all;
}

CudaStatus forward(const CudaShortConv& p, void* stream) {
  const bool aligned = aligned_to(p, {p.before, p.y, p.state});
  const int tile = tile_of(p);
  return with_type(p.type, [&]<class T>(T) {
    with_taps<sizeof(T)>(p, aligned, [&]<int kTaps, int kVector>() {
      forward_kernel<T, kTaps, kVector>
          <<<grid_of<kVector>(p, tile), dim3(32, kWarps), 0, static_cast<cudaStream_t>(stream)>>>(p, tile);
    });
    return last_status();
  });
}

CudaStatus backward(const CudaShortConvGradient& g, void* stream) {
  const auto& p = g.forward;
  const auto s = static_cast<cudaStream_t>(stream);
  const bool aligned = aligned_to(p, {p.before, g.dy, g.dstate, g.dx, g.dbefore});
  const int tile = tile_of(p);
  return with_type(p.type, [&]<class T>(T) {
    with_taps<sizeof(T)>(p, aligned, [&]<int kTaps, int kVector>() {
      backward_kernel<T, kTaps, kVector><<<grid_of<kVector>(p, tile), dim3(32, kWarps), 0, s>>>(g, tile);
    });
    if (g.partial) {
      const dim3 grid(static_cast<unsigned>((p.channels + 31) / 32), static_cast<unsigned>(p.width + 1));
      tap_kernel<<<grid, dim3(32, kSumLanes), 0, s>>>(g, partials(p));
    }
    return last_status();
  });
}

constexpr ShortConvCuda kTable = {forward, backward, partials};

}  // namespace

const ShortConvCuda& short_conv_cuda() { return kTable; }

}  // namespace weft::kernels
