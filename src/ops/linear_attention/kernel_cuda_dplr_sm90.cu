// Linear attention with a diagonal plus low rank erase (RWKV-7): tensor cores for K and V of 64, 128 or 256, shared memory as on
// Hopper. dplr_tiles.cuh, dplr_values.cuh and dplr_keys.cuh have the method.
//
// The forward is one sweep and leaves what a recalls; the backward is three: in reverse for dv and the gradient of what a
// recalls, then forward for dq and da, then in reverse for dk, db and the decay. Where heads and sequences are too few for
// the device, sequences are cut. The sweeps for y and dv leave the states at borders with which the others begin; to be
// cut themselves they take two launches, between which `join_states` makes of what segments leave and of their transitions
// what they begin with.
#include <algorithm>

#include "ops/linear_attention/dplr_keys.cuh"
#include "ops/linear_attention/dplr_values.cuh"

namespace weft::kernels {
namespace {
using namespace low_rank;

bool is_aligned(const CudaRows& x) {
  const int64_t elements = x.type == CudaType::fp32 ? 4 : 8;
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.batch % elements == 0 &&
         x.token % elements == 0 && x.head % elements == 0;
}

bool takes_width(int64_t width) { return width == 64 || width == 128 || width == 256; }

bool takes(const CudaLinearAttention& p) {
  return p.erase_read.data && p.erase_write.data && !p.beta.data && !p.bonus && p.capability == 90 &&
         p.v.type != CudaType::fp32 && takes_width(p.key_width) && takes_width(p.value_width) &&
         is_aligned(p.q) && is_aligned(p.k) && is_aligned(p.v) && is_aligned(p.erase_read) &&
         is_aligned(p.erase_write) && (p.decay != Decay::vector || is_aligned(p.log_decay));
}

// to [rows] = sums of from [rows, width], a warp a row
__global__ void sum_rows(int64_t rows, int width, const float* from, float* to) {
  const int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32;
  if (row >= rows) return;
  float sum = 0;
  for (int i = threadIdx.x % 32; i < width; i += 32) sum += from[row * width + i];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) to[row] = sum;
}

// Of a head and kColumns columns, states [B, H, segments, K, V]: from what segments leave to what they begin with, the
// first with `initial`. Behind it is what it leaves, behind the others that and their transition times the state before
// them, in reverse the transition's transpose.
constexpr int kColumns = 32;
template <int kSize>
__global__ void __launch_bounds__(256)
    join_states(int segments, bool reverse, const float* transition, const float* initial, float* states) {
  constexpr int kRows = 256 / kColumns, kEach = kSize / kRows, kDepth = kSize == 256 ? 8 : 32;
  __shared__ float carried[kSize][kColumns], factor[kDepth][kSize + 1];
  const int column = threadIdx.x % kColumns, row = threadIdx.x / kColumns;
  const int64_t head = blockIdx.x, at = blockIdx.y * kColumns + column;
  for (int k = row; k < kSize; k += kRows)
    carried[k][column] = initial ? initial[(head * kSize + k) * kSize + at] : 0.f;
  for (int i = 0; i < segments; ++i) {
    const int64_t place = head * segments + (reverse ? segments - 1 - i : i);
    const float* m = transition + place * kSize * kSize;
    const bool last = i + 1 == segments;
    float sums[kEach] = {};
    for (int first = 0; first < kSize && i > 0 && !last; first += kDepth) {
      __syncthreads();
      for (int n = threadIdx.x; n < kSize * kDepth; n += 256) {
        const int k = reverse ? n / kSize : n % kDepth, to = reverse ? n % kSize : n / kDepth;
        factor[k][to] = m[reverse ? (first + k) * kSize + to : to * kSize + first + k];
      }
      __syncthreads();
#pragma unroll 8
      for (int k = 0; k < kDepth; ++k)
#pragma unroll
        for (int j = 0; j < kEach; ++j) sums[j] += factor[k][row + j * kRows] * carried[first + k][column];
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      float* to = states + (place * kSize + row + j * kRows) * kSize + at;
      if (!last) sums[j] += *to;
      *to = carried[row + j * kRows][column];
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kEach; ++j) carried[row + j * kRows][column] = sums[j];
  }
}

int64_t chunks_of(const CudaLinearAttention& p) { return (p.tokens + kChunk - 1) / kChunk; }

// Sequences are cut where heads are too few for the device. The sweeps that own values need two launches then, so that two
// segments are as slow as one.
int64_t segments_of(const CudaLinearAttention& p, int64_t blocks, int64_t places) {
  constexpr int64_t kLeastChunks = 16;
  const int64_t wanted = std::min(places / std::max<int64_t>(1, blocks), chunks_of(p) / kLeastChunks);
  if (wanted < 2) return 1;
  const int64_t each = (chunks_of(p) + wanted - 1) / wanted;
  return (chunks_of(p) + each - 1) / each;
}
int64_t value_segments(const CudaLinearAttention& p) {
  if (p.key_width != p.value_width) return 1;
  // With 64 channels a block has a transition, too.
  const int64_t blocks = p.key_width == 64 ? 1 : p.key_width == 128 ? 2 : 4;
  const int64_t segments =
      segments_of(p, p.batch * p.heads * blocks, p.multiprocessors + p.batch * p.heads * blocks);
  return segments < 3 ? 1 : segments;
}
int64_t key_segments(const CudaLinearAttention& p) {
  const bool small = p.key_width == 64 && p.value_width == 64,
             wide = p.key_width >= 128 && (p.value_width == 256 || p.value_width == p.key_width);
  return segments_of(p, p.batch * p.heads * (wide ? p.key_width / 128 : p.key_width / 64),
                     p.multiprocessors * (small ? 2 : 1));
}

// Of states [B, H, segments, K, V], where there are several.
int64_t states_bytes(const CudaLinearAttention& p, int64_t segments) {
  return segments > 1 ? segments * p.batch * p.heads * p.key_width * p.value_width * 4 : 0;
}

Sweep sweep_of(const CudaLinearAttention& p, int64_t segments) {
  Sweep s{};
  s.tokens = p.tokens;
  s.heads = static_cast<int>(p.heads), s.group = static_cast<int>(p.heads / p.key_heads);
  s.key_width = static_cast<int>(p.key_width), s.value_width = static_cast<int>(p.value_width);
  s.segments = static_cast<int>(segments);
  s.segment_chunks = static_cast<int>((chunks_of(p) + segments - 1) / segments);
  s.scale = p.scale;
  s.q = p.q, s.k = p.k, s.v = p.v, s.log_decay = p.log_decay, s.write = p.write;
  s.starts = p.starts;
  return s;
}

Erase erase_of(const CudaLinearAttention& p) {
  Erase e{};
  e.decay = p.decay, e.group = static_cast<int>(p.heads / p.erase_heads);
  e.read = p.erase_read, e.write = p.erase_write;
  e.border_count = static_cast<int>(key_segments(p));
  e.border_chunks = static_cast<int>((chunks_of(p) + e.border_count - 1) / e.border_count);
  return e;
}

// Calls body.operator()<T>().
template <class Body>
CudaStatus with_half(const CudaLinearAttention& p, const Body& body) {
  return with_type(p.v.type, [&]<class T>(T) -> CudaStatus {
    if constexpr (sizeof(T) == 2) return body.template operator()<T>();
    return "linear attention's low rank form is for 16 bits";
  });
}

// `apart`: transitions in blocks of their own.
template <class Kernel>
CudaStatus launch(Kernel* kernel, const CudaLinearAttention& p, const Sweep& s, Erase e, int64_t slices,
                  int threads, int bytes, bool apart, cudaStream_t stream) {
  if (const auto error = allow_shared(kernel, static_cast<size_t>(bytes))) return status_of(error);
  e.slices = static_cast<int>(slices);
  const dim3 grid(static_cast<unsigned>(p.batch * p.heads * s.segments), static_cast<unsigned>(slices),
                  apart ? 2 : 1);
  kernel<<<grid, threads, bytes, stream>>>(s, e);
  return last_status();
}

// Whether blocks of a sweep over `slices` have a multiprocessor each and so have room for more helping warps.
bool are_alone(const CudaLinearAttention& p, const Sweep& s, const Erase& e, int64_t slices) {
  const int64_t swept = s.segments - (e.phase == Phase::whole ? 0 : 1);
  return p.batch * p.heads * swept * slices * (e.transition ? 2 : 1) <= p.multiprocessors;
}

// Value channels of a block of a sweep that owns those.
int64_t value_slice(const CudaLinearAttention& p, const Sweep& s, const Erase& e) {
  return p.key_width >= 128 && p.value_width >= 128 && !are_alone(p, s, e, p.value_width / 64) ? 128 : 64;
}

template <bool kReverse>
CudaStatus values(const CudaLinearAttention& p, const Sweep& s, const Erase& e, cudaStream_t stream) {
  return with_half(p, [&]<class T>() {
    const auto sweep = [&]<int kKey, int kValue, int kGroups, bool kTransitions = false>() {
      using Warps = ValueWarps<kKey, kValue, kGroups, kTransitions>;
      return launch(sweep_erased_values<T, kKey, kValue, kReverse, Warps>, p, s, e, p.value_width / kValue,
                    Warps::kThreads, ValuesLayout<Warps, kKey, kValue, kReverse>::kBytes,
                    e.transition && !kTransitions, stream);
    };
    const bool alone = are_alone(p, s, e, p.value_width / 64);
    if constexpr (!kReverse)
      if (p.key_width == 64 && e.transition) return sweep.template operator()<64, 64, 2, true>();
    if (p.key_width == 64)
      return alone ? sweep.template operator()<64, 64, 2>() : sweep.template operator()<64, 64, 1>();
    const bool narrow = value_slice(p, s, e) == 64;
    if (p.key_width == 256)
      return narrow ? sweep.template operator()<256, 64, 1>() : sweep.template operator()<256, 128, 1>();
    return narrow ? sweep.template operator()<128, 64, 2>() : sweep.template operator()<128, 128, 1>();
  });
}

template <bool kReverse>
CudaStatus keys(const CudaLinearAttention& p, const Sweep& s, const Erase& e, cudaStream_t stream) {
  return with_half(p, [&]<class T>() {
    const auto sweep = [&]<int kKey, int kValue, bool kApart>() {
      using Warps = KeyWarps<kKey, kValue, kApart>;
      return launch(sweep_erased_keys<T, kKey, kValue, kReverse, Warps>, p, s, e, p.key_width / kKey,
                    Warps::kThreads, KeysLayout<kKey, kValue, kReverse>::kBytes, false, stream);
    };
    const bool alone = are_alone(p, s, e, p.key_width / 64);
    if (p.value_width == 256)
      return p.key_width == 64 || alone ? sweep.template operator()<64, 256, true>()
                                        : sweep.template operator()<128, 256, false>();
    if (p.value_width == 64)
      return alone ? sweep.template operator()<64, 64, true>() : sweep.template operator()<64, 64, false>();
    return p.key_width == 128 && !alone ? sweep.template operator()<128, 128, false>()
                                        : sweep.template operator()<64, 128, true>();
  });
}

// A sweep that owns values and begins with `initial`, of all segments: `states` and, forward, `transition` are memory for
// them, in reverse the transitions are the forward's.
template <bool kReverse>
CudaStatus all_values(const CudaLinearAttention& p, Sweep s, Erase e, const float* initial, float* states,
                      float* transition, cudaStream_t stream) {
  e.initial = initial;
  if (s.segments == 1) return values<kReverse>(p, s, e, stream);
  Sweep first = s;
  first.end = states;
  e.phase = Phase::states, e.transition = kReverse ? nullptr : transition;
  if (const auto failed = values<kReverse>(p, first, e, stream)) return failed;
  const dim3 grid(static_cast<unsigned>(p.batch * p.heads), static_cast<unsigned>(p.value_width / kColumns));
  auto* kernel = p.key_width == 64    ? join_states<64>
                 : p.key_width == 128 ? join_states<128>
                                      : join_states<256>;
  kernel<<<grid, 256, 0, stream>>>(s.segments, kReverse, transition, initial, states);
  if (const auto failed = last_status()) return failed;
  e.phase = Phase::rest, e.transition = nullptr, s.begin = states;
  return values<kReverse>(p, s, e, stream);
}

// Saved: what a of every token recalls, the states at the borders of the sweeps that own keys, the transitions of the
// segments of the others.
struct Saved {
  char* recalled;
  float *borders, *transition;
  int64_t bytes;
  Saved(const CudaLinearAttention& p, const void* memory) {
    recalled = static_cast<char*>(const_cast<void*>(memory));
    const int64_t of_recalled = (p.batch * p.tokens * p.heads * p.value_width * 2 + 255) / 256 * 256,
                  of_borders = states_bytes(p, key_segments(p));
    borders = reinterpret_cast<float*>(recalled + of_recalled);
    transition = reinterpret_cast<float*>(recalled + of_recalled + of_borders);
    bytes = of_recalled + of_borders + states_bytes(p, value_segments(p));
  }
};
int64_t saved_bytes(const CudaLinearAttention& p) { return Saved(p, nullptr).bytes; }
int64_t forward_scratch(const CudaLinearAttention& p) { return 2 * states_bytes(p, value_segments(p)); }

CudaStatus forward(const CudaLinearAttention& p, void* saved, void* scratch, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (p.batch * p.heads == 0) return nullptr;
  Sweep s = sweep_of(p, value_segments(p));
  Erase e = erase_of(p);
  s.out = p.y, s.end = p.state;
  auto* states = static_cast<float*>(scratch);
  float* transition = states ? states + states_bytes(p, s.segments) / 4 : nullptr;
  if (saved) {
    const Saved to(p, saved);
    e.recalled = to.recalled, transition = to.transition;
    if (e.border_count > 1) e.borders = to.borders;
  }
  return all_values<false>(p, s, e, p.initial_state, states, transition, stream);
}

struct BackwardScratch {
  void* drecalled;
  bf16* read_gate;
  float *carried, *dlog_decay, *dwrite, *states, *borders;
  int64_t bytes = 0;

  BackwardScratch(const CudaLinearAttention& p, void* memory) {
    const int64_t rows = p.batch * p.tokens * p.heads;
    const auto take = [&](int64_t size) {
      char* at = static_cast<char*>(memory) + bytes;
      bytes += (size + 255) / 256 * 256;
      return at;
    };
    drecalled = take(rows * p.value_width * 2);
    read_gate = reinterpret_cast<bf16*>(take(rows * p.key_width * 2));
    carried = reinterpret_cast<float*>(take(key_segments(p) * p.batch * p.heads * p.key_width * 4));
    states = reinterpret_cast<float*>(take(states_bytes(p, value_segments(p))));
    borders = reinterpret_cast<float*>(take(states_bytes(p, key_segments(p))));
    dlog_decay = reinterpret_cast<float*>(take(p.decay == Decay::scalar ? rows * p.key_width * 4 : 0));
    dwrite = reinterpret_cast<float*>(
        take(p.write.data && p.value_width > 64 ? rows * p.value_width / 64 * 4 : 0));
  }
};

int64_t backward_scratch(const CudaLinearAttention& p) { return BackwardScratch(p, nullptr).bytes; }

// to [B, T, H] = sums of from [B, T, H, width]
CudaStatus sum_parts(const CudaLinearAttention& p, int64_t width, const float* from, float* to,
                     cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t rows = p.batch * p.tokens * p.heads;
  if (rows == 0) return nullptr;
  sum_rows<<<static_cast<unsigned>((rows * 32 + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      rows, static_cast<int>(width), from, to);
  return last_status();
}

CudaStatus backward(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g, const void* saved,
                    void* scratch, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (p.batch * p.heads == 0) return nullptr;
  const BackwardScratch memory(p, scratch);
  const Saved from(p, saved);
  Sweep s = sweep_of(p, value_segments(p));
  Erase e = erase_of(p);
  const bool cut = e.border_count > 1;
  Erase swept = e;
  if (s.segments > 1) swept.phase = Phase::rest;
  const int64_t parts = p.value_width / value_slice(p, s, swept);
  const bool sums_write = g.dwrite && parts > 1;
  s.dy = g.dy, s.out = g.dv, s.dwrite = sums_write ? memory.dwrite : g.dwrite;
  e.drecalled = memory.drecalled, e.borders = cut ? memory.borders : nullptr;
  if (const auto failed = all_values<true>(p, s, e, g.dstate, memory.states, from.transition, stream))
    return failed;
  if (sums_write)
    if (const auto failed = sum_parts(p, parts, memory.dwrite, g.dwrite, stream)) return failed;

  const float *before = cut ? from.borders : p.initial_state, *after = cut ? memory.borders : g.dstate;
  s = sweep_of(p, e.border_count);
  e.recalled = from.recalled, e.read_gate = memory.read_gate;
  s.dy = g.dy, s.begin = before, s.opposite = after, s.carried_gate = memory.carried;
  s.out = g.dq, s.out_fp32 = g.group_fp32, e.out = g.derase_read, e.out_fp32 = g.erase_fp32;
  if (const auto failed = keys<false>(p, s, e, stream)) return failed;

  const bool sums = g.dlog_decay && p.decay == Decay::scalar;
  s.begin = after, s.opposite = nullptr, s.end = g.dinitial, s.out = g.dk, e.out = g.derase_write;
  s.dlog_decay = sums ? memory.dlog_decay : p.decay == Decay::vector ? g.dlog_decay : nullptr;
  if (const auto failed = keys<true>(p, s, e, stream)) return failed;
  return sums ? sum_parts(p, p.key_width, memory.dlog_decay, g.dlog_decay, stream) : nullptr;
}

}  // namespace

const CudaLinearAttentionForm kCudaDplrForm = {"dplr",           takes,   saved_bytes, forward_scratch,
                                               backward_scratch, forward, backward};

}  // namespace weft::kernels
