// Linear attention with a decay for every key channel and no erase (GLA, HGRN-2, RWKV-6): tensor cores for K and V up to
// 256, padded to 64 or 128, or K to blocks of 128 and V to 256; shared memory as on Hopper. vector_tiles.cuh has the method.
//
// The forward is one sweep; the backward is three, each with a state of its own, so that none is saved but at borders of
// segments: dq forward, dv and dk in reverse. Where heads and sequences are too few for the device, sequences are cut into
// segments: a pass for the states alone goes before (vector_states.cuh), and `join_segments` makes of them what segments begin
// with.
#include <algorithm>

#include "ops/linear_attention/vector_keys.cuh"
#include "ops/linear_attention/vector_states.cuh"
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
  constexpr int kEach = 4;  // loads under way
  for (int begin = 0; begin < segments; begin += kEach) {
    float alone[kEach], decay[kEach];
    const auto at = [&](int i) { return head * segments + (reverse ? segments - 1 - i : i); };
#pragma unroll
    for (int j = 0; j < kEach; ++j)
      if (begin + j + 1 < segments) {
        alone[j] = states[at(begin + j) * size + entry];
        decay[j] = total_decay[at(begin + j) * key_width + k];
      }
#pragma unroll
    for (int j = 0; j < kEach; ++j)
      if (begin + j < segments) {
        states[at(begin + j) * size + entry] = carried;
        if (begin + j + 1 < segments) carried = decay[j] * carried + alone[j];
      }
  }
}

// to [rows] = sums of from [rows, 2]
__global__ void sum_key_blocks(int64_t rows, const float* from, float* to) {
  const int64_t row = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (row < rows) to[row] = from[2 * row] + from[2 * row + 1];
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

// Whether the copy engine can read x [B, T, heads, .].
bool is_aligned(const CudaLinearAttention& p, const CudaRows& x, int64_t heads) {
  const int64_t elements = x.type == CudaType::fp32 ? 4 : 8;
  const auto good = [&](int64_t extent, int64_t stride) {
    return extent == 1 || (stride > 0 && stride % elements == 0);
  };
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && good(p.batch, x.batch) && good(p.tokens, x.token) &&
         good(heads, x.head);
}

bool takes_width(int64_t width) { return width >= 16 && width <= 256 && width % 8 == 0; }

bool takes(const CudaLinearAttention& p) {
  return p.decay == Decay::vector && !p.beta.data && !p.erase_read.data && p.capability == 90 &&
         p.v.type != CudaType::fp32 && p.batch > 0 && p.tokens > 0 && p.tokens < (int64_t{1} << 30) &&
         takes_width(p.key_width) && takes_width(p.value_width) && is_aligned(p, p.q, p.key_heads) &&
         is_aligned(p, p.k, p.key_heads) && is_aligned(p, p.v, p.heads) &&
         is_aligned(p, p.log_decay, p.heads);
}

// Widths that the kernels are made for: a block's of keys, and of values.
struct Widths {
  int key, value;
};
Widths widths_of(const CudaLinearAttention& p) {
  if (p.key_width > kKeyBlock || p.value_width > 128) return {kKeyBlock, 256};
  return {p.key_width > 64 ? 128 : 64, p.value_width > 64 ? 128 : 64};
}
int key_blocks_of(const CudaLinearAttention& p) {
  return static_cast<int>((p.key_width + kKeyBlock - 1) / kKeyBlock);
}

int64_t chunks_of(const CudaLinearAttention& p) { return (p.tokens + kChunk - 1) / kChunk; }

// Chunks of a sequence's segments, so that all multiprocessors have work; a short one does not pay for what finds its
// state.
int64_t segment_chunks_of(const CudaLinearAttention& p) {
  constexpr int64_t kLeastChunks = 16, kTogether = kStateChunk / kChunk;
  const int64_t tasks = p.batch * p.heads, chunks = chunks_of(p);
  const Widths widths = widths_of(p);
  const int64_t places = p.multiprocessors * (widths.key + widths.value == 128 ? 2 : 1) / key_blocks_of(p);
  const int64_t wanted = std::clamp<int64_t>(places / tasks, 1, std::max<int64_t>(1, chunks / kLeastChunks));
  if (wanted == 1) return chunks;
  return ((chunks + wanted - 1) / wanted + kTogether - 1) / kTogether * kTogether;
}
int64_t segments_of(const CudaLinearAttention& p) {
  const int64_t each = segment_chunks_of(p);
  return (chunks_of(p) + each - 1) / each;
}

int64_t states_bytes(const CudaLinearAttention& p) {
  return segments_of(p) * p.batch * p.heads * p.key_width * p.value_width * 4;
}
int64_t channels_bytes(const CudaLinearAttention& p) {
  return segments_of(p) * p.batch * p.heads * p.key_width * 4;
}

Sweep sweep_of(const CudaLinearAttention& p) {
  Sweep s{};
  s.tokens = p.tokens;
  s.heads = static_cast<int>(p.heads), s.group = static_cast<int>(p.heads / p.key_heads);
  s.key_width = static_cast<int>(p.key_width), s.value_width = static_cast<int>(p.value_width);
  s.key_blocks = key_blocks_of(p);
  s.segments = static_cast<int>(segments_of(p));
  s.segment_chunks = static_cast<int>(segment_chunks_of(p));
  s.scale = p.scale;
  s.q = p.q, s.k = p.k, s.v = p.v, s.log_decay = p.log_decay, s.write = p.write;
  s.starts = p.starts, s.bonus = p.bonus;
  return s;
}

// The maps of what a sweep reads `rows` tokens at a time.
CudaStatus make_maps(const CudaLinearAttention& p, Needs needs, int rows, FedSweep& f) {
  const Sweep& s = f.sweep;
  const Widths widths = widths_of(p);
  f.stacked = p.key_width % kPanelColumns == 0 && p.value_width % kPanelColumns == 0;
  CudaStatus failed = nullptr;
  const auto make = [&](bool needed, CUtensorMap& map, const CudaRows& x, int64_t width, int64_t heads,
                        int of_block) {
    if (!needed || failed) return;
    const int panels = of_block / static_cast<int>(panel_columns(x));
    failed = f.stacked ? make_panels_map(&map, x, width, heads, p.tokens, p.batch, rows, panels)
                       : make_tensor_map(&map, x, width, heads, p.tokens, p.batch, rows);
  };
  const auto contiguous = [&](const void* data, CudaType type, int64_t width) {
    return CudaRows{data, type, p.tokens * p.heads * width, p.heads * width, width};
  };
  make(needs.q, f.q, s.q, p.key_width, p.key_heads, widths.key);
  make(needs.k, f.k, s.k, p.key_width, p.key_heads, widths.key);
  make(needs.v, f.v, s.v, p.value_width, p.heads, widths.value);
  make(true, f.gate, s.log_decay, p.key_width, p.heads, widths.key);
  make(needs.dy, f.dy, contiguous(s.dy, p.v.type, p.value_width), p.value_width, p.heads, widths.value);
  make(needs.read_gate, f.read_gate, contiguous(s.read_gate, CudaType::bf16, p.key_width), p.key_width,
       p.heads, widths.key);
  return failed;
}

template <class Kernel>
CudaStatus launch(const CudaLinearAttention& p, Kernel* kernel, const Sweep& s, Needs needs, int rows,
                  int threads, int bytes, cudaStream_t stream) {
  FedSweep fed{};
  fed.sweep = s;
  if (const auto failed = make_maps(p, needs, rows, fed)) return failed;
  if (const auto error = allow_shared(kernel, static_cast<size_t>(bytes))) return status_of(error);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(p.batch * p.heads * s.segments * s.key_blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(bytes);
  config.stream = stream;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim.x = static_cast<unsigned>(s.key_blocks);
  cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
  config.attrs = &cluster;
  config.numAttrs = s.key_blocks > 1 ? 1 : 0;
  return status_of(cudaLaunchKernelEx(&config, kernel, fed));
}

// Calls body.operator()<T, K, V>().
template <class Body>
CudaStatus with_sizes(const CudaLinearAttention& p, const Body& body) {
  const Widths widths = widths_of(p);
  return with_type(p.v.type, [&]<class T>(T) -> CudaStatus {
    if constexpr (sizeof(T) == 2) {
      if (widths.value == 256) return body.template operator()<T, 128, 256>();
      if (widths.key == 64)
        return widths.value == 64 ? body.template operator()<T, 64, 64>()
                                  : body.template operator()<T, 64, 128>();
      return widths.value == 64 ? body.template operator()<T, 128, 64>()
                                : body.template operator()<T, 128, 128>();
    }
    return "linear attention's vector form is for 16 bits";
  });
}

bool has_fp32_decay(const Sweep& s) { return s.log_decay.type == CudaType::fp32; }

template <bool kReverse>
CudaStatus values(const CudaLinearAttention& p, const Sweep& s, cudaStream_t stream) {
  return with_sizes(p, [&]<class T, int kKey, int kValue>() {
    const Needs needs = values_needs(kReverse, s, kValue);
    return launch(p, sweep_values<T, kKey, kValue, kReverse>, s, needs, kChunk,
                  (kKey / 16 + kValue / value_span(kValue)) * 32,
                  layout_of(kKey, kValue, has_fp32_decay(s), needs).bytes, stream);
  });
}

template <bool kReverse>
CudaStatus keys(const CudaLinearAttention& p, const Sweep& s, cudaStream_t stream) {
  return with_sizes(p, [&]<class T, int kKey, int kValue>() {
    const Needs needs = keys_needs(kReverse, kValue);
    return launch(p, sweep_keys<T, kKey, kValue, kReverse>, s, needs, kChunk, 4 * kKey,
                  layout_of(kKey, kValue, has_fp32_decay(s), needs).bytes, stream);
  });
}

// states = what segments begin with; decays is scratch.
template <bool kReverse>
CudaStatus begin_segments(const CudaLinearAttention& p, Sweep s, const float* initial, float* states,
                          float* decays, cudaStream_t stream) {
  s.end = states, s.total_decay = decays;
  const auto failed = with_sizes(p, [&]<class T, int kKey, int kValue>() {
    return launch(p, find_states<T, kKey, kValue, kReverse>, s, states_needs(kReverse), kStateChunk, 2 * kKey,
                  states_layout(kKey, kValue, has_fp32_decay(s)).bytes, stream);
  });
  if (failed) return failed;
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
    if (const auto failed = begin_segments<false>(p, s, p.initial_state, states, decays, stream))
      return failed;
    s.begin = states;
  }
  return values<false>(p, s, stream);
}

// The backward's scratch, in the order of the members.
struct BackwardScratch {
  bf16* read_gate;
  float *carried, *bonus, *states, *decays, *write;
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
    const int64_t blocks = key_blocks_of(p);
    write = reinterpret_cast<float*>(take(blocks > 1 ? p.batch * p.tokens * p.heads * blocks * 4 : 0));
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

CudaStatus backward_values(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                           const Sweep& common, const float* after, const BackwardScratch& to,
                           cudaStream_t stream) {
  const bool parts = g.dwrite && common.key_blocks > 1;
  Sweep s = common;
  s.begin = after, s.out = g.dv, s.dwrite = parts ? to.write : g.dwrite;
  if (const auto failed = values<true>(p, s, stream)) return failed;
  const int64_t rows = p.batch * p.tokens * p.heads;
  if (!parts || rows == 0) return nullptr;
  constexpr int kThreads = 256;
  sum_key_blocks<<<static_cast<unsigned>((rows + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
      rows, to.write, g.dwrite);
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
    if (const auto failed = begin_segments<true>(p, s, g.dstate, memory.states, memory.decays, stream))
      return failed;
  }
  if (g.dv || g.dwrite)
    if (const auto failed = backward_values(p, g, s, after, memory, stream)) return failed;
  if (!g.dq && !g.dk && !g.dlog_decay && !g.dbonus && !g.dinitial) return nullptr;
  return backward_keys(p, g, s, before, after, memory, stream);
}

}  // namespace

const CudaLinearAttentionForm kCudaVectorForm = {"vector",         takes,   saved_bytes, forward_scratch,
                                                 backward_scratch, forward, backward};

}  // namespace weft::kernels
