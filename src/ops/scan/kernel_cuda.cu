// h_t = a_t h_{t-1} + b_t and its gradients. A block has a strip of channels and walks over the tokens of one segment of
// a sequence; in each step every warp holds a few tokens in registers, reduces them to one map h -> A h + H, reads
// those of the other warps from shared memory, and then knows the state that its tokens start from. With few sequences
// there are several segments: a first pass leaves only the map of each, and the second begins with the product of those
// before. Sums are always taken in the same order.
#include "ops/scan/kernel_cuda.h"

#include <algorithm>

#include "ops/scan/algebra.cuh"

namespace weft::kernels {
namespace {

constexpr int kWarps = 16, kThreads = 32 * kWarps;
// Tokens that a block takes in one step.
template <class Algebra>
constexpr int64_t kStep = int64_t{kWarps} * Algebra::kTokens;

// A part of a sequence and the thread's channels in it.
struct Place {
  int64_t sequence, segment, segments, begin, end, channel, strip;
};

template <class Algebra>
__device__ __forceinline__ Place place_of(const CudaScan& p, int64_t segments) {
  const int64_t strips = (p.channels + 32 * Algebra::kChannels - 1) / (32 * Algebra::kChannels);
  Place x;
  x.segments = segments;
  x.strip = blockIdx.x % strips;
  x.segment = blockIdx.x / strips % segments;
  x.sequence = blockIdx.x / strips / segments;
  const int64_t steps = (p.tokens + kStep<Algebra> - 1) / kStep<Algebra>,
                each = (steps + segments - 1) / segments * kStep<Algebra>;
  x.begin = min(x.segment * each, p.tokens);
  x.end = min(x.begin + each, p.tokens);
  x.channel = (x.strip * 32 + threadIdx.x % 32) * Algebra::kChannels;
  return x;
}

// h -> A h + H, or H alone when a document starts inside.
template <class Algebra>
struct Map {
  float a[Algebra::kCoefficients], h[Algebra::kStates];
  bool fresh = false;

  __device__ Map() {
    Algebra::identity(a);
#pragma unroll
    for (float& x : h) x = 0.0f;
  }
  template <bool kAdjoint>
  __device__ __forceinline__ void apply(float (&carry)[Algebra::kStates]) const {
    float product[Algebra::kStates];
    if constexpr (kAdjoint)
      Algebra::multiply_adjoint(product, a, carry);
    else
      Algebra::multiply(product, a, carry);
#pragma unroll
    for (int i = 0; i < Algebra::kStates; ++i) carry[i] = fresh ? h[i] : product[i] + h[i];
  }
};

// The maps of the warps of a block, two sets, so that one barrier a step is enough.
template <class Algebra>
struct Exchange {
  static constexpr int kNumbers = Algebra::kCoefficients + Algebra::kStates;
  float numbers[2][kWarps][kNumbers][32];
  bool fresh[2][kWarps];

  __device__ void put(int set, int warp, int lane, const Map<Algebra>& map) {
#pragma unroll
    for (int i = 0; i < Algebra::kCoefficients; ++i) numbers[set][warp][i][lane] = map.a[i];
#pragma unroll
    for (int i = 0; i < Algebra::kStates; ++i)
      numbers[set][warp][Algebra::kCoefficients + i][lane] = map.h[i];
    if (lane == 0) fresh[set][warp] = map.fresh;
  }
  __device__ Map<Algebra> get(int set, int warp, int lane) const {
    Map<Algebra> map;
#pragma unroll
    for (int i = 0; i < Algebra::kCoefficients; ++i) map.a[i] = numbers[set][warp][i][lane];
#pragma unroll
    for (int i = 0; i < Algebra::kStates; ++i)
      map.h[i] = numbers[set][warp][Algebra::kCoefficients + i][lane];
    map.fresh = fresh[set][warp];
    return map;
  }
};

// Where the map of a segment lies between the two passes.
template <class Algebra>
__device__ __forceinline__ float* segment_map(const CudaScan& p, const Place& x, int64_t segment) {
  const int64_t lanes = (p.channels + Algebra::kChannels - 1) / Algebra::kChannels;
  return p.segments + ((x.sequence * x.segments + segment) * lanes + x.channel / Algebra::kChannels) *
                          (Exchange<Algebra>::kNumbers + 1);
}

template <class Algebra>
__device__ void write_map(float* to, const Map<Algebra>& map) {
#pragma unroll
  for (int i = 0; i < Algebra::kCoefficients; ++i) to[i] = map.a[i];
#pragma unroll
  for (int i = 0; i < Algebra::kStates; ++i) to[Algebra::kCoefficients + i] = map.h[i];
  to[Algebra::kCoefficients + Algebra::kStates] = map.fresh ? 1.0f : 0.0f;
}

template <class Algebra>
__device__ Map<Algebra> read_map(const float* from) {
  Map<Algebra> map;
#pragma unroll
  for (int i = 0; i < Algebra::kCoefficients; ++i) map.a[i] = from[i];
#pragma unroll
  for (int i = 0; i < Algebra::kStates; ++i) map.h[i] = from[Algebra::kCoefficients + i];
  map.fresh = from[Algebra::kCoefficients + Algebra::kStates] != 0.0f;
  return map;
}

// The state [B, states, E] of the thread's channels; null: zeros.
template <class Algebra>
__device__ void read_state(float (&state)[Algebra::kStates], const float* from, const CudaScan& p,
                           const Place& x) {
  if (!from) {
#pragma unroll
    for (float& value : state) value = 0.0f;
    return;
  }
  if constexpr (Algebra::kChannels == Algebra::kStates) {
#pragma unroll
    for (int i = 0; i < Algebra::kStates; ++i) state[i] = from[x.sequence * p.channels + x.channel + i];
  } else {
    constexpr int64_t kRows = Algebra::kStates / Algebra::kChannels;
    const int64_t scale = p.kind == CudaScanKind::matrix ? 1 : kRows;
    widen(state, Algebra::load_h(from, CudaType::fp32, p.channels,
                                 (x.sequence * p.channels * kRows) / scale + x.channel));
  }
}

template <class Algebra>
__device__ void write_state(float* to, const float (&state)[Algebra::kStates], const CudaScan& p,
                            const Place& x) {
  if constexpr (Algebra::kChannels == Algebra::kStates) {
#pragma unroll
    for (int i = 0; i < Algebra::kStates; ++i) to[x.sequence * p.channels + x.channel + i] = state[i];
  } else {
    constexpr int64_t kRows = Algebra::kStates / Algebra::kChannels;
    const int64_t scale = p.kind == CudaScanKind::matrix ? 1 : kRows;
    Algebra::store_h(to, CudaType::fp32, p.channels, (x.sequence * p.channels * kRows) / scale + x.channel,
                     state);
  }
}

// Offset of a row of h in channels; a pair of a matrix scan takes two rows.
template <class Algebra>
__device__ __forceinline__ int64_t row_of(const CudaScan& p, const Place& x, int64_t t) {
  return (x.sequence * p.tokens + t) * p.channels * (p.kind == CudaScanKind::matrix ? 2 : 1) + x.channel;
}

// Bit i: a document starts at token t + i.
template <int kTokens>
__device__ __forceinline__ unsigned starts_at(const CudaScan& p, const Place& x, int64_t t) {
  if (!p.starts) return 0;
  const int lane = threadIdx.x % 32;
  return __ballot_sync(0xffffffff,
                       lane < kTokens && t + lane < x.end && p.starts[x.sequence * p.tokens + t + lane] != 0);
}

template <class Algebra>
struct ForwardRows {
  static constexpr int kTokens = Algebra::kTokens;
  typename Algebra::RowA a[kTokens];
  typename Algebra::RowH b[kTokens];

  __device__ __forceinline__ void load(const CudaScan& p, const Place& x, int64_t t) {
    const bool there = x.channel < p.channels;
#pragma unroll
    for (int i = 0; i < kTokens; ++i)
      if (there && t + i < x.end) {
        a[i] = Algebra::load_a(p.a, p.channels, x.sequence * p.a.batch + (t + i) * p.a.token + x.channel);
        b[i] = Algebra::load_h(p.b.data, p.b.type, p.channels,
                               x.sequence * p.b.batch + (t + i) * p.b.token + x.channel);
      }
  }
};

// `maps`: only the map of each segment is wanted.
template <class Algebra>
__global__ void __launch_bounds__(kThreads) forward_kernel(const CudaScan p, int64_t segments, bool maps) {
  constexpr int kStates = Algebra::kStates, kTokens = Algebra::kTokens;
  __shared__ Exchange<Algebra> exchange;
  const Place x = place_of<Algebra>(p, segments);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool there = x.channel < p.channels;
  float carry[kStates] = {};
  if (there && !maps) {
    read_state<Algebra>(carry, p.initial, p, x);
    for (int64_t s = 0; s < x.segment; ++s)
      read_map<Algebra>(segment_map<Algebra>(p, x, s)).template apply<false>(carry);
  }
  Map<Algebra> whole;
  ForwardRows<Algebra> next;
  next.load(p, x, x.begin + warp * kTokens);
  int set = 0;
  for (int64_t step = x.begin; step < x.end; step += kStep<Algebra>, set ^= 1) {
    const int64_t t = step + warp * kTokens;
    const ForwardRows<Algebra> rows = next;
    if (step + kStep<Algebra> < x.end) next.load(p, x, t + kStep<Algebra>);
    const unsigned starts = starts_at<kTokens>(p, x, t);
    Map<Algebra> map;
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      if (t + i >= x.end) break;
      float a[Algebra::kCoefficients], b[kStates];
      widen(a, rows.a[i]);
      widen(b, rows.b[i]);
      if (starts >> i & 1) {
#pragma unroll
        for (int j = 0; j < kStates; ++j) map.h[j] = b[j];
        map.fresh = true;
        continue;
      }
      Algebra::compose(map.a, a, map.a);
      Algebra::multiply(map.h, a, map.h);
#pragma unroll
      for (int j = 0; j < kStates; ++j) map.h[j] += b[j];
    }
    exchange.put(set, warp, lane, map);
    __syncthreads();
    float state[kStates];
#pragma unroll 4
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp)
#pragma unroll
        for (int j = 0; j < kStates; ++j) state[j] = carry[j];
      const auto other = exchange.get(set, w, lane);
      other.template apply<false>(carry);
      if (maps) {
        Algebra::compose(whole.a, other.a, whole.a);
        whole.fresh = whole.fresh || other.fresh;
      }
    }
    if (!there || maps) continue;
#pragma unroll
    for (int i = 0; i < kTokens; ++i) {
      if (t + i >= x.end) break;
      float a[Algebra::kCoefficients], b[kStates];
      widen(a, rows.a[i]);
      widen(b, rows.b[i]);
      Algebra::multiply(state, a, state);
#pragma unroll
      for (int j = 0; j < kStates; ++j) state[j] = starts >> i & 1 ? b[j] : state[j] + b[j];
      Algebra::store_h(p.h, p.b.type, p.channels, row_of<Algebra>(p, x, t + i), state);
    }
  }
  if (!there || warp != 0) return;
  if (maps) {
#pragma unroll
    for (int j = 0; j < kStates; ++j) whole.h[j] = carry[j];
    write_map(segment_map<Algebra>(p, x, x.segment), whole);
  } else if (x.segment + 1 == x.segments) {
    write_state<Algebra>(p.state, carry, p, x);
  }
}

template <class Algebra>
struct BackwardRows {
  static constexpr int kTokens = Algebra::kTokens;
  typename Algebra::RowA a[kTokens];
  typename Algebra::RowH dh[kTokens], before[kTokens];  // before: h of the token before

  __device__ __forceinline__ void load(const CudaScanGradient& g, const Place& x, int64_t t, bool states) {
    const CudaScan& p = g.forward;
    const bool there = x.channel < p.channels;
#pragma unroll
    for (int i = 0; i < kTokens; ++i)
      if (there && t + i < x.end) {
        a[i] = Algebra::load_a(p.a, p.channels, x.sequence * p.a.batch + (t + i) * p.a.token + x.channel);
        dh[i] = Algebra::load_h(g.dh, p.b.type, p.channels, row_of<Algebra>(p, x, t + i));
        if (states && t + i > 0)
          before[i] = Algebra::load_h(p.h, p.b.type, p.channels, row_of<Algebra>(p, x, t + i - 1));
      }
  }
};

// Adds up what the warps hold, in order, and writes it as a row of da_sums.
template <class Algebra>
__device__ void write_coefficient_sums(const CudaScanGradient& g, const Place& x, Exchange<Algebra>& exchange,
                                       const float (&sums)[Algebra::kCoefficients]) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < Algebra::kCoefficients; ++i) exchange.numbers[0][warp][i][lane] = sums[i];
  __syncthreads();
  if (warp != 0 || x.channel >= g.forward.channels) return;
  constexpr int kPer = Algebra::kCoefficients / Algebra::kChannels;
  float* const to =
      g.da_sums + ((x.sequence * x.segments + x.segment) * g.forward.channels + x.channel) * kPer;
#pragma unroll
  for (int i = 0; i < Algebra::kCoefficients; ++i) {
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += exchange.numbers[0][w][i][lane];
    to[i] = sum;
  }
}

// With q_t = a*_t g_t, what token t hands to the one before: g_t = dh_t + q_{t+1}, db_t = g_t, da_t = g_t h*_{t-1}.
template <class Algebra>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const CudaScanGradient g, int64_t segments, bool maps) {
  constexpr int kStates = Algebra::kStates, kCoefficients = Algebra::kCoefficients,
                kTokens = Algebra::kTokens;
  __shared__ Exchange<Algebra> exchange;
  const CudaScan& p = g.forward;
  const Place x = place_of<Algebra>(p, segments);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool there = x.channel < p.channels, states = !maps && (g.da || g.da_sums);
  float carry[kStates] = {}, sums[kCoefficients] = {};
  if (there && !maps) {
    read_state<Algebra>(carry, g.dstate, p, x);
    for (int64_t s = x.segments - 1; s > x.segment; --s)
      read_map<Algebra>(segment_map<Algebra>(p, x, s)).template apply<true>(carry);
  }
  Map<Algebra> whole;
  BackwardRows<Algebra> next;
  const int64_t last = x.end > x.begin ? x.begin + (x.end - 1 - x.begin) / kStep<Algebra> * kStep<Algebra>
                                       : x.begin - kStep<Algebra>;
  if (last >= x.begin) next.load(g, x, last + warp * kTokens, states);
  int set = 0;
  for (int64_t step = last; step >= x.begin; step -= kStep<Algebra>, set ^= 1) {
    const int64_t t = step + warp * kTokens;
    const BackwardRows<Algebra> rows = next;
    if (step > x.begin) next.load(g, x, t - kStep<Algebra>, states);
    const unsigned starts = starts_at<kTokens>(p, x, t);
    Map<Algebra> map;
#pragma unroll
    for (int i = kTokens - 1; i >= 0; --i) {
      if (t + i >= x.end) continue;
      float a[kCoefficients], dh[kStates];
      widen(a, rows.a[i]);
      widen(dh, rows.dh[i]);
#pragma unroll
      for (int j = 0; j < kStates; ++j) map.h[j] += dh[j];
      Algebra::multiply_adjoint(map.h, a, map.h);
      Algebra::compose(map.a, map.a, a);
      if (starts >> i & 1) {
#pragma unroll
        for (float& value : map.h) value = 0.0f;
        map.fresh = true;
      }
    }
    exchange.put(set, warp, lane, map);
    __syncthreads();
    float q[kStates];
#pragma unroll 4
    for (int w = kWarps - 1; w >= 0; --w) {
      if (w == warp)
#pragma unroll
        for (int j = 0; j < kStates; ++j) q[j] = carry[j];
      const auto other = exchange.get(set, w, lane);
      other.template apply<true>(carry);
      if (maps) {
        Algebra::compose(whole.a, whole.a, other.a);
        whole.fresh = whole.fresh || other.fresh;
      }
    }
    if (!there || maps) continue;
#pragma unroll
    for (int i = kTokens - 1; i >= 0; --i) {
      if (t + i >= x.end) continue;
      float a[kCoefficients], dh[kStates];
      widen(a, rows.a[i]);
      widen(dh, rows.dh[i]);
#pragma unroll
      for (int j = 0; j < kStates; ++j) q[j] += dh[j];
      const int64_t row = row_of<Algebra>(p, x, t + i);
      Algebra::store_h(g.db, p.b.type, p.channels, row, q);
      const bool start = starts >> i & 1;
      if (states) {
        float h[kStates], da[kCoefficients];
        if (t + i > 0)
          widen(h, rows.before[i]);
        else
          read_state<Algebra>(h, p.initial, p, x);
        Algebra::outer(da, q, h);
        if (start)
#pragma unroll
          for (float& value : da) value = 0.0f;
        if (g.da)
          Algebra::store_a(g.da, p.a.type, p.channels,
                           row + (p.kind == CudaScanKind::matrix ? row - x.channel : int64_t{0}), da);
#pragma unroll
        for (int j = 0; j < kCoefficients; ++j) sums[j] += da[j];
      }
      Algebra::multiply_adjoint(q, a, q);
      if (start)
#pragma unroll
        for (float& value : q) value = 0.0f;
    }
  }
  if (there && warp == 0) {
    if (maps) {
#pragma unroll
      for (int j = 0; j < kStates; ++j) whole.h[j] = carry[j];
      write_map(segment_map<Algebra>(p, x, x.segment), whole);
    } else if (x.segment == 0 && g.dinitial) {
      write_state<Algebra>(g.dinitial, carry, p, x);
    }
  }
  if (g.da_sums && !maps) write_coefficient_sums<Algebra>(g, x, exchange, sums);
}

int64_t element_bytes(CudaType type) { return type == CudaType::fp32 ? 4 : 2; }

// Channels of a thread: 8 bytes of the narrower of two equal types, so that rows of a warp are at least 128 bytes.
int channels_of(const CudaScan& p) {
  if (p.kind != CudaScanKind::real) return 1;
  const int wanted = p.a.type == CudaType::fp32 ? 2 : 4;
  const auto fits = [&](const void* data, CudaType type, int64_t batch, int64_t token) {
    return packs(data, token, wanted, element_bytes(type)) && batch % wanted == 0;
  };
  const bool typed = p.a.type == p.b.type || p.a.type == CudaType::fp32;
  return typed && p.channels % wanted == 0 && fits(p.a.data, p.a.type, p.a.batch, p.a.token) &&
                 fits(p.b.data, p.b.type, p.b.batch, p.b.token) && fits(p.h, p.b.type, 0, 0)
             ? wanted
             : 1;
}

int64_t strips_of(const CudaScan& p) {
  return (p.channels + 32 * channels_of(p) - 1) / (32 * channels_of(p));
}

// As many as fill the device, but none shorter than four steps.
int64_t segments(const CudaScan& p) {
  const int64_t rows = p.batch * strips_of(p),
                step = p.kind == CudaScanKind::real ? kStep<RealAny> : kStep<MatrixPair>,
                steps = (p.tokens + step - 1) / step;
  return std::max<int64_t>(1, std::min(p.multiprocessors / std::max<int64_t>(rows, 1), steps / 4));
}

int64_t scratch(const CudaScan& p) {
  const int64_t numbers = p.kind == CudaScanKind::real ? 3 : p.kind == CudaScanKind::complex ? 5 : 7;
  return p.batch * segments(p) * p.channels * numbers;
}

// Calls body.run<Algebra>().
template <class Body>
CudaStatus with_algebra(const CudaScan& p, const Body& body) {
  if (p.kind == CudaScanKind::complex) return body.template operator()<ComplexNumber>();
  if (p.kind == CudaScanKind::matrix) return body.template operator()<MatrixPair>();
  if (channels_of(p) == 1) return body.template operator()<RealAny>();
  return with_type(p.b.type, [&]<class H>(H) {
    if constexpr (sizeof(H) == 2)
      if (p.a.type != CudaType::fp32) return body.template operator()<RealPacks<H, H, 4>>();
    return body.template operator()<RealPacks<float, H, 2>>();
  });
}

template <class Kernel, class Problem>
CudaStatus launch(Kernel* kernel, const CudaScan& p, const Problem& problem, void* stream) {
  const int64_t parts = segments(p), blocks = p.batch * strips_of(p) * parts;
  if (blocks == 0) return nullptr;
  const auto grid = static_cast<unsigned>(blocks);
  const auto s = static_cast<cudaStream_t>(stream);
  if (parts > 1) kernel<<<grid, kThreads, 0, s>>>(problem, parts, true);
  kernel<<<grid, kThreads, 0, s>>>(problem, parts, false);
  return last_status();
}

CudaStatus forward(const CudaScan& p, void* stream) {
  return with_algebra(p, [&]<class Algebra>() { return launch(forward_kernel<Algebra>, p, p, stream); });
}

CudaStatus backward(const CudaScanGradient& g, void* stream) {
  return with_algebra(
      g.forward, [&]<class Algebra>() { return launch(backward_kernel<Algebra>, g.forward, g, stream); });
}

constexpr ScanCuda kTable = {forward, backward, segments, scratch};

}  // namespace

const ScanCuda& scan_cuda() { return kTable; }

}  // namespace weft::kernels
