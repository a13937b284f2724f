// What sweeps of a low rank erase are given, and how a chunk's inputs come to shared memory.
#pragma once

#include "ops/linear_attention/vector_keys.cuh"
#include "ops/linear_attention/vector_values.cuh"

namespace weft::kernels::low_rank {
using namespace vector_decay;

// A sequence is swept as a whole, or in segments that take two launches. The first has the results of the segment that it
// begins with, and of the others but the last only the states that they make of zero. Once it is known what they begin
// with, the second has the results of the rest.
enum class Phase { whole, states, rest };

// What a sweep is given beside vector_decay::Sweep. A token's update is S_t = D S + w k v' + b c' with c = S_{t-1}' a;
// e = b' dS_t is the gradient of c.
struct Erase {
  Decay decay;
  int group;             // value heads that share a and b
  CudaRows read, write;  // a, b
  void* recalled;        // c [B, T, H, V], in the type of v; null: not wanted
  void* drecalled;       // e [B, T, H, V]
  bf16* read_gate;       // [B, T, H, K] a da
  void* out;             // [B, T, H, K] da or db; null: not wanted
  bool out_fp32;
  int slices;  // of the channels that warps own, each swept by a block of its own
  Phase phase;
  const float* initial;  // [B, H, K, V] or null: what the sweep of a sequence begins with
  // [B, H, segments, K, K] or null: what Phase::states leaves of every segment but the first, which makes of the state
  // before it the transition times that and the state from zero. Then K is V.
  float* transition;
  // [B, H, borders, K, V] or null: the state before every `border_chunks` chunks, in reverse its gradient behind them.
  float* borders;
  int border_count, border_chunks;
};

// A slice as a head of its own, in tensors whose rows are cut into slices.
struct Slice {
  Sweep s;
  Place p;
  __device__ __forceinline__ Slice(const Sweep& all, const Erase& e, const Place& place) : s(all), p(place) {
    s.heads *= e.slices, p.head = p.head * e.slices + static_cast<int>(blockIdx.y);
  }
};

// Single numbers of a chunk's tokens; `gate` is a decay that all channels share. As many chunks of them are kept.
constexpr int kNumberRing = 8;
struct TokenScalars {
  float write[kChunk], start[kChunk], gate[kChunk];
};

__device__ __forceinline__ float3 token_scalars(const Sweep& s, const Erase& e, const Place& p,
                                                int64_t token) {
  float3 x{1, 0, 0};
  if (threadIdx.x >= kChunk || token >= s.tokens) return x;
  if (s.write.data)
    x.x = *reinterpret_cast<const float*>(head_of(s.write, p, p.head) + token * s.write.token * 4);
  if (s.starts) x.y = s.starts[p.batch * s.tokens + token];
  if (e.decay != Decay::scalar) return x;
  const char* g = head_of(s.log_decay, p, p.head);
  const int64_t at = token * s.log_decay.token;
  if (s.log_decay.type == CudaType::fp32) x.z = reinterpret_cast<const float*>(g)[at];
  if (s.log_decay.type == CudaType::bf16) x.z = to_float(reinterpret_cast<const bf16*>(g)[at]);
  if (s.log_decay.type == CudaType::fp16) x.z = to_float(reinterpret_cast<const fp16*>(g)[at]);
  return x;
}
__device__ __forceinline__ void keep_scalars(TokenScalars& to, float3 x) {
  if (threadIdx.x >= kChunk) return;
  to.write[threadIdx.x] = x.x, to.start[threadIdx.x] = x.y, to.gate[threadIdx.x] = x.z;
}

// A thread's part of the copies of a [T, kWidth] matrix to tiles, chunk after chunk, by the first kThreads threads.
// kMixed: of either width of numbers.
template <int kWidth, int kThreads, bool kMixed = false>
struct RowCopies {
  const char* from;
  int64_t row_bytes;
  bool fp32;

  __device__ __forceinline__ RowCopies(const char* head, CudaType type, int64_t stride, int64_t token)
      : fp32(kMixed && type == CudaType::fp32) {
    row_bytes = stride * (fp32 ? 4 : 2);
    const int pieces = fp32 ? kWidth / 4 : kWidth / 8, i = threadIdx.x;
    from = head + (token + i / pieces) * row_bytes + i % pieces * 16;
  }
  // Rows from `left` on are zeros. Then goes on by `tokens`.
  __device__ __forceinline__ void start(char* to, int left, int tokens) {
    fp32 ? copy<kWidth / 4>(to, left) : copy<kWidth / 8>(to, left);
    from += tokens * row_bytes;
  }

 private:
  template <int kPieces>
  __device__ __forceinline__ void copy(char* to, int left) const {
    constexpr int kRows = kThreads / kPieces;  // at a time
    const int row = threadIdx.x / kPieces, piece = threadIdx.x % kPieces;
    if (kRows > kChunk && row >= kChunk) return;
#pragma unroll
    for (int first = 0; first < kChunk; first += kRows) {
      const int at = kPieces == kWidth / 4 ? at32(kWidth, first + row, piece * 4) * 4
                                           : at16(kWidth, first + row, piece * 8) * 2;
      copy_async16(to + at, from + first * row_bytes, first + row < left);
    }
  }
};

// The copies of a chunk's q, k, a, b and decays, of kKey channels from `channel` on.
template <int kKey, int kThreads>
struct KeyCopies {
  using Copies = RowCopies<kKey, kThreads>;
  Copies q, k, a, b;
  RowCopies<kKey, kThreads, true> gate;
  bool gates;

  __device__ __forceinline__ KeyCopies(const Sweep& s, const Erase& e, const Place& p, int channel,
                                       int64_t token)
      : q(of(s.q, p, p.key_head, channel, token)),
        k(of(s.k, p, p.key_head, channel, token)),
        a(of(e.read, p, p.head / e.group, channel, token)),
        b(of(e.write, p, p.head / e.group, channel, token)),
        gate(head_of(s.log_decay, p, p.head) + channel * (s.log_decay.type == CudaType::fp32 ? 4 : 2),
             s.log_decay.type, s.log_decay.token, token),
        gates(e.decay == Decay::vector) {}
  __device__ __forceinline__ void start(char* to, char* to_gates, int left, int tokens) {
    constexpr int kTileBytes = kChunk * kKey * 2;
    q.start(to, left, tokens), k.start(to + kTileBytes, left, tokens);
    a.start(to + 2 * kTileBytes, left, tokens), b.start(to + 3 * kTileBytes, left, tokens);
    if (gates) gate.start(to_gates, left, tokens);
  }

 private:
  __device__ __forceinline__ static Copies of(const CudaRows& x, const Place& p, int head, int channel,
                                              int64_t token) {
    return Copies(head_of(x, p, head) + channel * 2, x.type, x.token, token);
  }
};

// Copies of a contiguous [B, T, H, kWidth] tensor of 16 bits.
template <int kWidth, int kThreads>
__device__ __forceinline__ RowCopies<kWidth, kThreads> contiguous_copies(const Sweep& s, const Place& p,
                                                                         const void* from, int64_t token) {
  return {static_cast<const char*>(from) + p.row(s, 0) * kWidth * 2, CudaType::bf16,
          int64_t{s.heads} * kWidth, token};
}

}  // namespace weft::kernels::low_rank
