// What the kernels of the delta rule share. Letters as in README.md, chunks of 64 tokens.
#pragma once

#include <algorithm>
#include <type_traits>

#include "ops/linear_attention/kernel_cuda.h"
#include "ops/linear_attention/tiles.cuh"

namespace weft::kernels::delta {

constexpr int kChunk = 64;
constexpr int kPairs = kLowerSize;  // numbers of a lower triangular matrix of pairs of tokens

// Tensors between the kernels, all by (batch, head, chunk): tiles (tiles.cuh) of 64 tokens and lower triangles of their
// pairs, in the type of v. With S the state before the chunk, T = (I + system)^-1 and the factors of Facts:
//   N = T (write V - erase K_in S),   Y = read Q_in S + P N,   S_after = through S + K_out' (keep N)
// where K_in, K_out and Q_in are K and Q, or with a vector decay K and Q decayed from the chunk's start or to its end.
struct Work {
  int chunks = 0;         // in a sequence
  void* solve = nullptr;  // T, then what rounding it took away
  void* reads = nullptr;  // P
  void *queries = nullptr, *keys_in = nullptr,
       *keys_out = nullptr;  // [64, K] Q_in, K_in, K_out; null: the inputs are
  void* facts = nullptr;     // Facts<K>
  void* values = nullptr;    // [64, V] N; null: no backward will follow
  void* states = nullptr;    // S' before the chunk, [V, K]; null: no backward will follow
  // Where there are few heads, a sequence is cut into segments, each an affine map of the state before it: S -> M S + E.
  int segments = 1, segment_chunks = 0;
  float* maps = nullptr;   // [B, H, segments, K, K] M
  float* edges = nullptr;  // [B, H, segments, K, V] E, then the states before the segments
  // Of the backward.
  float* dedges = nullptr;   // likewise the gradients of the states after the segments
  void* sources = nullptr;   // [64, V] dR = T' dN
  void* dstates = nullptr;   // gradient of the state after the chunk, as states
  float* partial = nullptr;  // [slices of K, 2, B, T, H] of dlog_decay and dbeta; null: there is one slice

  __device__ int64_t chunk(const CudaLinearAttention& p, int b, int h, int c) const {
    return (static_cast<int64_t>(b) * p.heads + h) * chunks + c;
  }
};
template <class T>
__device__ __forceinline__ T* tile_at(void* tiles, int64_t chunk, int64_t size) {
  return static_cast<T*>(tiles) + chunk * size;
}

template <class T>
__device__ __forceinline__ const T* row_at(const CudaRows& rows, int b, int64_t t, int h) {
  return static_cast<const T*>(rows.data) + b * rows.batch + t * rows.token + h * rows.head;
}
__device__ __forceinline__ int key_head(const CudaLinearAttention& p, int h) {
  return h / static_cast<int>(p.heads / p.key_heads);
}
template <class T>
__device__ __forceinline__ float number_at(const CudaRows& rows, int b, int64_t t, int h) {
  if (rows.type == CudaType::fp32) return *row_at<float>(rows, b, t, h);
  return to_float(*row_at<T>(rows, b, t, h));
}
__device__ __forceinline__ int valid_tokens(const CudaLinearAttention& p, int64_t first) {
  return static_cast<int>(min(p.tokens - first, static_cast<int64_t>(kChunk)));
}
// In base 2; bounded so that sums are numbers: 2^-127 is zero.
__device__ __forceinline__ float bounded_log2(float log_decay) { return fmaxf(log_decay * kLog2e, -127.f); }

// What a chunk's tokens say, one number each; tokens from the end of the sequence on write, erase and decay nothing.
struct Tokens {
  float decay[kChunk];  // sum of log2 decays up to and including the token; zeros with a vector decay
  float beta[kChunk], write[kChunk];
  int document[kChunk];  // starts among the chunk's tokens up to and including this one

  // Tokens i <= r of one document see each other.
  __device__ float between(int i, int r) const {
    return i <= r && document[i] == document[r] ? fast_exp2(decay[r] - decay[i]) : 0.f;
  }
  // Of the state before the chunk at the token; of the token in the state after the chunk; of the one in the other.
  __device__ float from_before(int t) const { return document[t] == 0 ? fast_exp2(decay[t]) : 0.f; }
  __device__ float to_after(int t) const { return between(t, kChunk - 1); }
  __device__ float through() const { return from_before(kChunk - 1); }
};

template <int K>
struct Facts {
  Tokens tokens;
  float read[kChunk], keep[kChunk], erase[kChunk];
  float through[K];
};
__host__ __device__ inline int64_t facts_bytes(const CudaLinearAttention& p) {
  return sizeof(Tokens) + (3 * kChunk + p.key_width) * sizeof(float);
}

// What a lane of a warp has to know of its two tokens of a chunk.
struct TokenPair {
  float decay[2] = {}, beta[2] = {}, write[2] = {};
  int start[2] = {};
};
template <class T>
__device__ __forceinline__ TokenPair load_token_pair(const CudaLinearAttention& p, int b, int h,
                                                     int64_t first) {
  TokenPair x;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t t = first + threadIdx.x % 32 * 2 + i;
    if (t >= p.tokens) continue;
    if (p.decay == Decay::scalar) x.decay[i] = bounded_log2(number_at<T>(p.log_decay, b, t, h));
    if (p.starts) x.start[i] = p.starts[b * p.tokens + t] != 0;
    x.beta[i] = *row_at<float>(p.beta, b, t, h);
    x.write[i] = *row_at<float>(p.write, b, t, h);
  }
  return x;
}
__device__ __forceinline__ void store_tokens(Tokens& tokens, const TokenPair& x) {
  const int lane = threadIdx.x % 32;
  float sum = x.decay[0] + x.decay[1];
  int starts = x.start[0] + x.start[1];
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const float before = __shfl_up_sync(0xffffffff, sum, step);
    const int starts_before = __shfl_up_sync(0xffffffff, starts, step);
    if (lane >= step) sum += before, starts += starts_before;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int t = 2 * lane + i;
    tokens.decay[t] = i ? sum : sum - x.decay[1];
    tokens.document[t] = i ? starts : starts - x.start[1];
    tokens.beta[t] = x.beta[i], tokens.write[t] = x.write[i];
  }
}
// By one warp.
template <class T>
__device__ __forceinline__ void load_tokens(Tokens& tokens, const CudaLinearAttention& p, int b, int h,
                                            int64_t first) {
  store_tokens(tokens, load_token_pair<T>(p, b, h, first));
}
// Starts to copy what load_tokens found when the chunk was prepared.
__device__ __forceinline__ void copy_tokens(Tokens& to, const CudaLinearAttention& p, const Work& work,
                                            int64_t chunk) {
  const char* facts = static_cast<const char*>(work.facts) + chunk * facts_bytes(p);
  copy_block(reinterpret_cast<char*>(&to), facts, sizeof(Tokens));
}

CudaStatus prepare(const CudaLinearAttention& p, const Work& work, void* stream);
CudaStatus prepare_vector(const CudaLinearAttention& p, const Work& work, void* stream);
CudaStatus prepare_vector_sm90(const CudaLinearAttention& p, const Work& work, void* stream);
CudaStatus forward_pass(const CudaLinearAttention& p, const Work& work, void* stream);
CudaStatus backward_pass(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                         const Work& work, void* stream);
// The passes on Hopper.
CudaStatus forward_pass_sm90(const CudaLinearAttention& p, const Work& work, void* stream);
// Prepares and passes at once, where `has_forward_sm90`.
CudaStatus forward_sm90(const CudaLinearAttention& p, const Work& work, void* stream);
CudaStatus forward_vector_sm90(const CudaLinearAttention& p, const Work& work, void* stream);
CudaStatus backward_pass_sm90(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                              const Work& work, void* stream);
// Where `has_backward_sm90`, the last step of backward_pass_sm90: all gradients.
CudaStatus backward_gradients_sm90(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                                   const Work& work, void* stream);
CudaStatus backward_gradients_vector_sm90(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                                          const Work& work, void* stream);
// From what the segments do to the states before them: edges, or in reverse dedges. From segment `first` on, 0 or 1; if 1, the
// first edge is the state after the first segment.
CudaStatus join_segments(const CudaLinearAttention& p, const Work& work, int first, void* stream);
CudaStatus join_segments_backward(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                                  const Work& work, void* stream);
CudaStatus gradients(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g, const Work& work,
                     void* stream);
CudaStatus gradients_vector(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g,
                            const Work& work, void* stream);
// The last of the gradients: sums over the slices of channels.
CudaStatus add_slices(const CudaLinearAttention& p, const CudaLinearAttentionGradients& g, const Work& work,
                      void* stream);

// Calls body(T{}, integral constant of K).
template <class Body>
CudaStatus with_type_and_width(const CudaLinearAttention& p, const Body& body) {
  const auto with_width = [&](auto type) -> CudaStatus {
    if (p.key_width == 64) return body(type, std::integral_constant<int, 64>{});
    if (p.key_width == 128) return body(type, std::integral_constant<int, 128>{});
    return body(type, std::integral_constant<int, 256>{});
  };
  return p.v.type == CudaType::bf16 ? with_width(bf16{}) : with_width(fp16{});
}

// Bytes of shared memory that a block can have.
inline size_t shared_limit(int capability) {
  if (capability == 80 || capability == 87) return 163 * 1024;
  return capability >= 90 && capability < 120 ? 227 * 1024 : 99 * 1024;
}
// What the largest kernel needs.
inline size_t shared_needed(const CudaLinearAttention& p) { return (p.key_width == 256 ? 227 : 163) * 1024; }

// With 256 channels the products of warpgroups leave too few registers.
inline bool has_passes_sm90(const CudaLinearAttention& p) { return p.capability == 90 && p.key_width <= 128; }
// The copy engine takes no strides of zero.
inline bool has_strides(const CudaLinearAttention& p, const CudaRows& x, int64_t heads) {
  return (heads == 1 || x.head > 0) && (p.tokens == 1 || x.token > 0) && (p.batch == 1 || x.batch > 0);
}
inline bool has_backward_sm90(const CudaLinearAttention& p) {
  return has_passes_sm90(p) && p.key_width == p.value_width &&
         (p.decay != Decay::vector || p.v.type == CudaType::bf16);
}
inline bool has_forward_sm90(const CudaLinearAttention& p, const Work& work) {
  return has_passes_sm90(p) && p.value_width <= 128 && p.decay != Decay::vector &&
         has_strides(p, p.q, p.key_heads) && has_strides(p, p.k, p.key_heads) &&
         has_strides(p, p.v, p.heads) && (work.segments == 1 || p.key_width == p.value_width);
}
// The same with a vector decay and heads of 64; `saved`: a backward will follow, which must not want decayed rows. Wider heads
// have room for two chunks only, which then wait for each other.
inline bool has_forward_vector_sm90(const CudaLinearAttention& p, const Work& work, bool saved) {
  return has_passes_sm90(p) && p.key_width == 64 && p.value_width <= 128 && p.decay == Decay::vector &&
         p.v.type == CudaType::bf16 && work.segments == 1 && (!saved || has_backward_sm90(p));
}

// Segments of a sequence: with fewer than 4 the passes over them cost more than they save.
inline int pass_segments(const CudaLinearAttention& p) {
  const int64_t chunks = (p.tokens + kChunk - 1) / kChunk,
                blocks = p.batch * p.heads * ((p.value_width + 127) / 128);
  const int64_t segments = std::min(p.multiprocessors / blocks, chunks / 8);
  return segments < 4 ? 1 : static_cast<int>(segments);
}
// The same where no backward follows: forward_sm90 takes all but the last one at once, then all but the first.
inline int forward_segments(const CudaLinearAttention& p) {
  if (!has_passes_sm90(p) || p.decay == Decay::vector || p.key_width != p.value_width)
    return pass_segments(p);
  const int64_t chunks = (p.tokens + kChunk - 1) / kChunk;
  const int64_t blocks = p.multiprocessors * (p.key_width == 64 ? 2 : 1) / (p.batch * p.heads);
  const int64_t segments = std::min(blocks + 1, chunks / 8);
  return segments < 4 ? 1 : static_cast<int>(segments);
}
// Warps of a block of the passes over the chunks; each has 16 columns of the state. Fewer where that fills the device.
inline int pass_warps(const CudaLinearAttention& p, const Work& work, int least) {
  const int64_t strips = p.batch * p.heads * work.segments * p.value_width / 16;
  int warps = 8;
  while (warps > least && (p.value_width / 16 % warps != 0 || strips / warps < p.multiprocessors * 3 / 4))
    warps /= 2;
  return warps;
}

// Warps of a block that has no columns of both E and M.
inline int summary_warps(const CudaLinearAttention& p) {
  return p.key_width % 128 == 0 && p.value_width % 128 == 0 ? 8 : 4;
}

}  // namespace weft::kernels::delta
