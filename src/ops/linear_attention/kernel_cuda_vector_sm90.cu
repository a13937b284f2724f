// Linear attention with a decay for every key channel and no erase (GLA, HGRN-2, RWKV-6): tensor cores for K and V of 64
// or 128, shared memory as on Hopper. vector_tiles.cuh has the method.
//
// The forward is one sweep; the backward is three, each with a state of its own, so that none is saved: dq forward, dv
// and dk in reverse. Where heads and sequences are too few for the device, sequences are cut into segments: a sweep for
// the states alone goes before, and `join_segments` makes of them the states that segments begin with.
#include <algorithm>

#include "ops/linear_attention/vector_keys.cuh"
#include "ops/linear_attention/vector_values.cuh"

namespace weft::kernels {
namespace {
using namespace vector_decay;

// states [B, H, segments, K, V]: from what every segment alone leaves to what it begins with.
__global__ void join_segments(int64_t heads, int segments, int key_width, int value_width, bool reverse,
                              const float* total_decay, const float* initial, float* states) {
  const int64_t size = int64_t{key_width} * value_width,
                index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= heads * size) return;
  const int64_t head = index / size, entry = index % size, k = entry / value_width;
  float carried = initial ? initial[index] : 0.f;
  for (int i = 0; i < segments; ++i) {
    const int64_t at = head * segments + (reverse ? segments - 1 - i : i);
    const float alone = states[at * size + entry];
    states[at * size + entry] = carried;
    carried = total_decay[at * key_width + k] * carried + alone;
  }
}

// to [B, H, K] = sums of from [B, H, segments, K]
__global__ void sum_segments(int64_t heads, int segments, int key_width, const float* from, float* to) {
  const int64_t index = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= heads * key_width) return;
  float sum = 0;
  for (int i = 0; i < segments; ++i)
    sum += from[(index / key_width * segments + i) * key_width + index % key_width];
  to[index] = sum;
}

bool is_aligned(const CudaRows& x) {
  const int64_t elements = x.type == CudaType::fp32 ? 4 : 8;
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && x.batch % elements == 0 &&
         x.token % elements == 0 && x.head % elements == 0;
}

bool takes_width(int64_t width) { return width == 64 || width == 128; }

bool takes(const CudaLinearAttention& p) {
  return p.decay == Decay::vector && !p.beta.data && !p.erase_read.data && p.capability >= 90 &&
         p.v.type != CudaType::fp32 && takes_width(p.key_width) && takes_width(p.value_width) &&
         is_aligned(p.q) && is_aligned(p.k) && is_aligned(p.v) && is_aligned(p.log_decay);
}

int64_t chunks_of(const CudaLinearAttention& p) { return (p.tokens + kChunk - 1) / kChunk; }

// Segments of a sequence, so that all multiprocessors have work; a short one does not pay for the sweep that finds its
// state.
int64_t segments_of(const CudaLinearAttention& p) {
  constexpr int64_t kLeastChunks = 16;
  const int64_t tasks = std::max<int64_t>(1, p.batch * p.heads), chunks = std::max<int64_t>(1, chunks_of(p));
  const int64_t places = p.multiprocessors * (p.key_width == 128 ? 1 : 2);
  const int64_t wanted = std::clamp<int64_t>(places / tasks, 1, std::max<int64_t>(1, chunks / kLeastChunks));
  const int64_t each = (chunks + wanted - 1) / wanted;
  return (chunks + each - 1) / each;
}

int64_t states_bytes(const CudaLinearAttention& p) {
  return segments_of(p) * p.batch * p.heads * p.key_width * p.value_width * 4;
}
int64_t channels_bytes(const CudaLinearAttention& p) {
  return segments_of(p) * p.batch * p.heads * p.key_width * 4;
}

Sweep sweep_of(const CudaLinearAttention& p) {
  const int64_t segments = segments_of(p);
  Sweep s{};
  s.tokens = p.tokens;
  s.heads = static_cast<int>(p.heads), s.group = static_cast<int>(p.heads / p.key_heads);
  s.key_width = static_cast<int>(p.key_width), s.value_width = static_cast<int>(p.value_width);
  s.segments = static_cast<int>(segments);
  s.segment_chunks = static_cast<int>((chunks_of(p) + segments - 1) / segments);
  s.scale = p.scale;
  s.q = p.q, s.k = p.k, s.v = p.v, s.log_decay = p.log_decay, s.write = p.write;
  s.starts = p.starts, s.bonus = p.bonus;
  return s;
}

template <class Kernel>
CudaStatus launch(Kernel* kernel, const Sweep& s, int64_t tasks, int threads, Needs needs,
                  cudaStream_t stream) {
  const Layout l = layout_of(s.key_width, s.value_width, s.log_decay.type == CudaType::fp32, needs);
  if (const auto error = allow_shared(kernel, static_cast<size_t>(l.bytes))) return status_of(error);
  kernel<<<static_cast<unsigned>(tasks * s.segments), threads, l.bytes, stream>>>(s);
  return last_status();
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
    return "linear attention's vector form is for 16 bits";
  });
}

template <bool kReverse>
CudaStatus values(const CudaLinearAttention& p, const Sweep& s, cudaStream_t stream) {
  return with_sizes(p, [&]<class T, int kKey, int kValue>() {
    return launch(sweep_values<T, kKey, kValue, kReverse>, s, p.batch * p.heads, 2 * (kKey + kValue),
                  values_needs(kReverse, s), stream);
  });
}

template <bool kReverse>
CudaStatus keys(const CudaLinearAttention& p, const Sweep& s, cudaStream_t stream) {
  return with_sizes(p, [&]<class T, int kKey, int kValue>() {
    return launch(sweep_keys<T, kKey, kValue, kReverse>, s, p.batch * p.heads, 4 * kKey,
                  keys_needs(kReverse, s), stream);
  });
}

// states = what segments begin with; decays is scratch.
template <bool kReverse>
CudaStatus find_states(const CudaLinearAttention& p, Sweep s, const float* initial, float* states,
                       float* decays, cudaStream_t stream) {
  s.only_state = true, s.begin = nullptr, s.out = nullptr, s.dwrite = nullptr;
  s.end = states, s.end_of_all = true, s.total_decay = decays;
  if (const auto failed = values<kReverse>(p, s, stream)) return failed;
  constexpr int kThreads = 256;
  const int64_t entries = p.batch * p.heads * p.key_width * p.value_width;
  join_segments<<<static_cast<unsigned>((entries + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      p.batch * p.heads, s.segments, s.key_width, s.value_width, kReverse, decays, initial, states);
  return last_status();
}

int64_t saved_bytes(const CudaLinearAttention& p) { return segments_of(p) > 1 ? states_bytes(p) : 0; }

int64_t forward_scratch(const CudaLinearAttention& p) {
  return segments_of(p) > 1 ? states_bytes(p) + channels_bytes(p) : 0;
}

CudaStatus forward(const CudaLinearAttention& p, void* saved, void* scratch, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (p.batch * p.heads == 0) return nullptr;
  Sweep s = sweep_of(p);
  s.begin = p.initial_state, s.out = p.y, s.end = p.state;
  if (s.segments > 1) {
    char* memory = static_cast<char*>(scratch);
    auto* states = static_cast<float*>(saved ? saved : scratch);
    auto* decays = reinterpret_cast<float*>(memory + states_bytes(p));
    if (const auto failed = find_states<false>(p, s, p.initial_state, states, decays, stream)) return failed;
    s.begin = states;
  }
  return values<false>(p, s, stream);
}

// The backward's scratch, in the order of the members.
struct BackwardScratch {
  bf16* read_gate;
  float *carried, *bonus, *states, *decays;
  int64_t bytes = 0;

  BackwardScratch(const CudaLinearAttention& p, void* memory) {
    const auto take = [&](int64_t size) {
      char* at = static_cast<char*>(memory) + bytes;
      bytes += (size + 255) / 256 * 256;
      return at;
    };
    read_gate = reinterpret_cast<bf16*>(take(p.batch * p.tokens * p.heads * p.key_width * 2));
    carried = reinterpret_cast<float*>(take(channels_bytes(p)));
    bonus = reinterpret_cast<float*>(take(p.bonus ? channels_bytes(p) : 0));
    const bool many = segments_of(p) > 1;
    states = reinterpret_cast<float*>(take(many ? states_bytes(p) : 0));
    decays = reinterpret_cast<float*>(take(many ? channels_bytes(p) : 0));
  }
};

int64_t backward_scratch(const CudaLinearAttention& p) { return BackwardScratch(p, nullptr).bytes; }

CudaStatus backward_keys(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                         const Sweep& common, const float* before, const float* after,
                         const BackwardScratch& to, cudaStream_t stream) {
  Sweep s = common;
  s.out_fp32 = g.group_fp32, s.read_gate = to.read_gate, s.carried_gate = to.carried;
  s.begin = before, s.opposite = after, s.out = g.dq, s.dbonus = g.dbonus ? to.bonus : nullptr;
  if (const auto failed = keys<false>(p, s, stream)) return failed;
  s.begin = after, s.opposite = nullptr, s.out = g.dk, s.dlog_decay = g.dlog_decay, s.end = g.dinitial;
  if (const auto failed = keys<true>(p, s, stream)) return failed;
  if (!g.dbonus) return nullptr;
  constexpr int kThreads = 128;
  const int64_t entries = p.batch * p.heads * p.key_width;
  sum_segments<<<static_cast<unsigned>((entries + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      p.batch * p.heads, s.segments, s.key_width, to.bonus, g.dbonus);
  return last_status();
}

CudaStatus backward(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g, const void* saved,
                    void* scratch, void* stream_pointer) {
  const auto stream = static_cast<cudaStream_t>(stream_pointer);
  if (p.batch * p.heads == 0) return nullptr;
  const BackwardScratch memory(p, scratch);
  Sweep s = sweep_of(p);
  s.dy = g.dy;
  const float *before = p.initial_state, *after = g.dstate;
  if (s.segments > 1) {
    before = static_cast<const float*>(saved), after = memory.states;
    if (const auto failed = find_states<true>(p, s, g.dstate, memory.states, memory.decays, stream))
      return failed;
  }
  if (g.dv || g.dwrite) {
    Sweep of_values = s;
    of_values.begin = after, of_values.out = g.dv, of_values.dwrite = g.dwrite;
    if (const auto failed = values<true>(p, of_values, stream)) return failed;
  }
  if (!g.dq && !g.dk && !g.dlog_decay && !g.dbonus && !g.dinitial) return nullptr;
  return backward_keys(p, g, s, before, after, memory, stream);
}

}  // namespace

const CudaLinearAttentionForm kCudaVectorForm = {"vector",         takes,   saved_bytes, forward_scratch,
                                                 backward_scratch, forward, backward};

}  // namespace weft::kernels
