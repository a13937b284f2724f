// Linear attention with a diagonal plus low rank erase (RWKV-7): tensor cores for K and V of 64 or 128, shared memory as on
// Hopper. dplr_tiles.cuh, dplr_values.cuh and dplr_keys.cuh have the method.
//
// The forward is one sweep and leaves what a recalls; the backward is three: in reverse for dv and the gradient of what a
// recalls, then forward for dq and da, then in reverse for dk, db and the decay. Where heads and sequences are far too few
// for the device, sequences are cut into segments: sweeps for the states alone go before, and `join_states` makes of what
// they leave and of the segments' transitions the states that segments begin with.
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

bool takes_width(int64_t width) { return width == 64 || width == 128; }

bool takes(const CudaLinearAttention& p) {
  return p.erase_read.data && p.erase_write.data && !p.beta.data && !p.bonus && p.capability >= 90 &&
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

// Of a head and kColumns columns, states [B, H, segments, K, V]: from what every segment alone leaves to what it begins
// with. Behind a segment is that and its transition times the state before it, in reverse the transition's transpose.
constexpr int kColumns = 32;
template <int kSize>
__global__ void __launch_bounds__(256)
    join_states(int segments, bool reverse, const float* transition, const float* initial, float* states) {
  __shared__ float carried[kSize][kColumns], factor[kColumns][kSize + 1];
  constexpr int kRows = 256 / kColumns, kEach = kSize / kRows;
  const int column = threadIdx.x % kColumns, row = threadIdx.x / kColumns;
  const int64_t head = blockIdx.x, at = blockIdx.y * kColumns + column;
  for (int k = row; k < kSize; k += kRows)
    carried[k][column] = initial ? initial[(head * kSize + k) * kSize + at] : 0.f;
  for (int i = 0; i < segments; ++i) {
    const int64_t place = head * segments + (reverse ? segments - 1 - i : i);
    const float* m = transition + place * kSize * kSize;
    const bool last = i + 1 == segments;
    float sums[kEach] = {};
    for (int first = 0; first < kSize && !last; first += kColumns) {
      __syncthreads();
      for (int n = threadIdx.x; n < kSize * kColumns; n += 256) {
        const int k = reverse ? n / kSize : n % kColumns, to = reverse ? n % kSize : n / kColumns;
        factor[k][to] = m[reverse ? (first + k) * kSize + to : to * kSize + first + k];
      }
      __syncthreads();
#pragma unroll 8
      for (int k = 0; k < kColumns; ++k)
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

// Segments of a sequence; the sweeps for the states cost more than the forward does. Off: the backward with segments was
// once wrong on a GPU, and its correction waits for LinearAttentionTest.LongSequencesOfFewHeads to pass with them there.
constexpr bool kUseSegments = false;
int64_t segments_of(const CudaLinearAttention& p) {
  constexpr int64_t kLeastChunks = 16, kPays = 3;
  if (!kUseSegments) return 1;
  const int64_t places = p.multiprocessors * (p.key_width == 128 ? 1 : 2);
  const int64_t wanted =
      std::min(places / std::max<int64_t>(1, p.batch * p.heads), chunks_of(p) / kLeastChunks);
  if (p.key_width != p.value_width || wanted < kPays) return 1;
  const int64_t each = (chunks_of(p) + wanted - 1) / wanted;
  return (chunks_of(p) + each - 1) / each;
}

// Of the states that segments begin with, or of their transitions.
int64_t states_bytes(const CudaLinearAttention& p) {
  const int64_t segments = segments_of(p);
  return segments > 1 ? segments * p.batch * p.heads * p.key_width * p.value_width * 4 : 0;
}

Sweep sweep_of(const CudaLinearAttention& p) {
  Sweep s{};
  s.tokens = p.tokens;
  s.heads = static_cast<int>(p.heads), s.group = static_cast<int>(p.heads / p.key_heads);
  s.key_width = static_cast<int>(p.key_width), s.value_width = static_cast<int>(p.value_width);
  const int64_t segments = segments_of(p);
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
  return e;
}

// Calls body.operator()<T, K, V>().
template <class Body>
CudaStatus with_sizes(const CudaLinearAttention& p, const Body& body) {
  return with_type(p.v.type, [&]<class T>(T) -> CudaStatus {
    if constexpr (sizeof(T) == 2) {
      if (p.key_width == 64)
        return p.value_width == 64 ? body.template operator()<T, 64, 64>()
                                   : body.template operator()<T, 64, 128>();
      return p.value_width == 64 ? body.template operator()<T, 128, 64>()
                                 : body.template operator()<T, 128, 128>();
    }
    return "linear attention's low rank form is for 16 bits";
  });
}

template <class Kernel>
CudaStatus launch(Kernel* kernel, const CudaLinearAttention& p, const Sweep& s, const Erase& e, int threads,
                  int bytes, cudaStream_t stream) {
  if (const auto error = allow_shared(kernel, static_cast<size_t>(bytes))) return status_of(error);
  const dim3 grid(static_cast<unsigned>(p.batch * p.heads * s.segments), e.transition ? 2 : 1);
  kernel<<<grid, threads, bytes, stream>>>(s, e);
  return last_status();
}

bool gate_fp32(const Sweep& s) { return s.log_decay.type == CudaType::fp32; }

template <bool kReverse>
CudaStatus values(const CudaLinearAttention& p, const Sweep& s, const Erase& e, cudaStream_t stream) {
  const auto l =
      values_layout(s.key_width, s.value_width, e.decay == Decay::vector, gate_fp32(s), kReverse && s.dwrite);
  return with_sizes(p, [&]<class T, int kKey, int kValue>() {
    return launch(sweep_erased_values<T, kKey, kValue, kReverse>, p, s, e, 2 * (kKey + kValue), l.bytes,
                  stream);
  });
}

template <bool kReverse>
CudaStatus keys(const CudaLinearAttention& p, const Sweep& s, const Erase& e, cudaStream_t stream) {
  const auto l = keys_layout(s.key_width, s.value_width, e.decay == Decay::vector, gate_fp32(s), kReverse);
  return with_sizes(p, [&]<class T, int kKey, int kValue>() {
    return launch(sweep_erased_keys<T, kKey, kValue, kReverse>, p, s, e, 4 * kKey, l.bytes, stream);
  });
}

// states = what segments begin with, by their transitions, which the forward finds.
template <bool kReverse>
CudaStatus find_states(const CudaLinearAttention& p, Sweep s, Erase e, const float* initial, float* states,
                       float* transition, cudaStream_t stream) {
  s.only_state = true, s.begin = nullptr, s.out = nullptr, s.dwrite = nullptr, s.end = states,
  s.end_of_all = true;
  e.recalled = e.drecalled = nullptr, e.transition = kReverse ? nullptr : transition;
  if (const auto failed = values<kReverse>(p, s, e, stream)) return failed;
  const dim3 grid(static_cast<unsigned>(p.batch * p.heads), static_cast<unsigned>(p.value_width / kColumns));
  auto* kernel = p.key_width == 64 ? join_states<64> : join_states<128>;
  kernel<<<grid, 256, 0, stream>>>(s.segments, kReverse, transition, initial, states);
  return last_status();
}

// Of segments: the states they begin with, then their transitions.
struct Segments {
  float *states, *transition;
  Segments(const CudaLinearAttention& p, const void* memory)
      : states(static_cast<float*>(const_cast<void*>(memory))), transition(states + states_bytes(p) / 4) {}
};

// Saved: of segments, then what a of every token recalls.
int64_t saved_bytes(const CudaLinearAttention& p) {
  return 2 * states_bytes(p) + p.batch * p.tokens * p.heads * p.value_width * 2;
}
void* recalled_in(const CudaLinearAttention& p, const void* saved) {
  return static_cast<char*>(const_cast<void*>(saved)) + 2 * states_bytes(p);
}
int64_t forward_scratch(const CudaLinearAttention& p) { return 2 * states_bytes(p); }

CudaStatus forward(const CudaLinearAttention& p, void* saved, void* scratch, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (p.batch * p.heads == 0) return nullptr;
  Sweep s = sweep_of(p);
  Erase e = erase_of(p);
  s.begin = p.initial_state, s.out = p.y, s.end = p.state,
  e.recalled = saved ? recalled_in(p, saved) : nullptr;
  if (s.segments > 1) {
    const Segments to(p, saved ? saved : scratch);
    if (const auto failed = find_states<false>(p, s, e, p.initial_state, to.states, to.transition, stream))
      return failed;
    s.begin = to.states;
  }
  return values<false>(p, s, e, stream);
}

struct BackwardScratch {
  void* drecalled;
  bf16* read_gate;
  float *carried, *dlog_decay, *states;
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
    carried = reinterpret_cast<float*>(take(segments_of(p) * p.batch * p.heads * p.key_width * 4));
    states = reinterpret_cast<float*>(take(states_bytes(p)));
    dlog_decay = reinterpret_cast<float*>(take(p.decay == Decay::scalar ? rows * p.key_width * 4 : 0));
  }
};

int64_t backward_scratch(const CudaLinearAttention& p) { return BackwardScratch(p, nullptr).bytes; }

CudaStatus sum_dlog_decay(const CudaLinearAttention& p, const float* from, float* to, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t rows = p.batch * p.tokens * p.heads;
  if (rows == 0) return nullptr;
  sum_rows<<<static_cast<unsigned>((rows * 32 + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      rows, static_cast<int>(p.key_width), from, to);
  return last_status();
}

CudaStatus backward(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g, const void* saved,
                    void* scratch, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (p.batch * p.heads == 0) return nullptr;
  const BackwardScratch memory(p, scratch);
  const Sweep common = [&] {
    Sweep s = sweep_of(p);
    s.dy = g.dy;
    return s;
  }();
  Erase e = erase_of(p);
  const float *before = p.initial_state, *after = g.dstate;
  if (common.segments > 1) {
    const Segments from(p, saved);
    before = from.states, after = memory.states;
    if (const auto failed = find_states<true>(p, common, e, g.dstate, memory.states, from.transition, stream))
      return failed;
  }
  e.drecalled = memory.drecalled;
  Sweep s = common;
  s.begin = after, s.out = g.dv, s.dwrite = g.dwrite;
  if (const auto failed = values<true>(p, s, e, stream)) return failed;

  e.recalled = recalled_in(p, saved), e.read_gate = memory.read_gate;
  s = common;
  s.begin = before, s.opposite = after, s.carried_gate = memory.carried;
  s.out = g.dq, s.out_fp32 = g.group_fp32, e.out = g.derase_read, e.out_fp32 = g.erase_fp32;
  if (const auto failed = keys<false>(p, s, e, stream)) return failed;

  const bool sums = g.dlog_decay && p.decay == Decay::scalar;
  s.begin = after, s.opposite = nullptr, s.end = g.dinitial, s.out = g.dk, e.out = g.derase_write;
  s.dlog_decay = sums ? memory.dlog_decay : p.decay == Decay::vector ? g.dlog_decay : nullptr;
  if (const auto failed = keys<true>(p, s, e, stream)) return failed;
  return sums ? sum_dlog_decay(p, memory.dlog_decay, g.dlog_decay, stream) : nullptr;
}

}  // namespace

const CudaLinearAttentionForm kCudaDplrForm = {"dplr",           takes,   saved_bytes, forward_scratch,
                                               backward_scratch, forward, backward};

}  // namespace weft::kernels
