// Tiles of linear attention with a diagonal plus low rank erase, in chunks of 16 tokens: vector_tiles.cuh with a second
// pair of rows and columns. Beside q, read after the token's own decay and writes, a token has the row a, read before
// them; beside k it has the column b. So q meets columns i <= r over the decays in (i, r], a meets i < r over (i, r).
#pragma once

#include "ops/linear_attention/vector_keys.cuh"
#include "ops/linear_attention/vector_values.cuh"

namespace weft::kernels::low_rank {
using namespace vector_decay;

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
  // [B, H, segments, K, K] or null: where a second grid of a sweep for the states alone leaves what a segment makes of the
  // identity, when nothing is written. Then K is V.
  float* transition;
};

// Tiles [16, K] of a chunk: `kLevels` of q with k, as many of a with b, then rows times the decay from the chunk's begin
// on and columns times the decay to its end.
enum Tile { kQK = 0, kAB = kLevels, kInQ = 2 * kLevels, kInA, kOutK, kOutB, kTiles };

// Bytes of a chunk's decays in shared memory.
__host__ __device__ inline int decay_bytes(int key_width, bool vector, bool fp32) {
  return !vector ? 0 : kChunk * key_width * (fp32 ? 4 : 2);
}

// Single numbers of a chunk's tokens; `gate` is a decay that all channels share.
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

// Start the copies of a chunk's q, k, a, b, of its decays, and of a contiguous [B, T, H, kWidth] tensor of 16 bits, by the
// first kThreads threads.
template <int kKey, int kThreads>
__device__ __forceinline__ void load_keys(const Sweep& s, const Erase& e, const Place& p, int64_t token,
                                          char* to) {
  constexpr int kTileBytes = kChunk * kKey * 2;
  const auto load = [&](int index, const CudaRows& x, int head) {
    load_rows<kKey, kThreads, false>(to + index * kTileBytes, head_of(x, p, head), x.token * 2, token,
                                     s.tokens);
  };
  load(0, s.q, p.key_head), load(1, s.k, p.key_head);
  load(2, e.read, p.head / e.group), load(3, e.write, p.head / e.group);
}
template <int kKey, int kThreads>
__device__ __forceinline__ void load_decays(const Sweep& s, const Erase& e, const Place& p, int64_t token,
                                            char* to) {
  if (e.decay == Decay::vector)
    load_rows<kKey, kThreads>(to, s.log_decay, head_of(s.log_decay, p, p.head), token, s.tokens);
}
template <int kWidth, int kThreads>
__device__ __forceinline__ void load_contiguous(const Sweep& s, const Place& p, const void* from,
                                                int64_t token, char* to) {
  load_rows<kWidth, kThreads, false>(to, static_cast<const char*>(from) + p.row(s, 0) * kWidth * 2,
                                     int64_t{s.heads} * kWidth * 2, token, s.tokens);
}

// Sums of x[0..7] over eight neighbouring lanes: lane l gets that of x[l % 8].
__device__ __forceinline__ float sum_of_eight(const float (&x)[8]) {
  const int lane = threadIdx.x;
  float half[4], quarter[2];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float mine = lane & 4 ? x[i + 4] : x[i], theirs = lane & 4 ? x[i] : x[i + 4];
    half[i] = mine + __shfl_xor_sync(0xffffffff, theirs, 4);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float mine = lane & 2 ? half[i + 2] : half[i], theirs = lane & 2 ? half[i] : half[i + 2];
    quarter[i] = mine + __shfl_xor_sync(0xffffffff, theirs, 2);
  }
  const float mine = lane & 1 ? quarter[1] : quarter[0], theirs = lane & 1 ? quarter[0] : quarter[1];
  return mine + __shfl_xor_sync(0xffffffff, theirs, 1);
}

// Which side of the tiles has its inputs; the other has the decays alone.
enum class Sides { both, columns, rows };

// Decays 16 key channels from `first` on of a chunk, by one warp; a lane has two channels of four tokens, lanes 8 apart
// have the next four. `keys` has tiles of q, k, a, b. `levels` gets the first 2 kLevels tiles, `ends` the others (with
// Sides::rows not the last). `whole` [K] gets the decay of the whole chunk. Not wanted when null: `vanished` [K] a bit for
// every token whose decay is zero, `diagonal` [2, 16] the parts of scale q.k and scale q.b.
template <class T, int kKey, Sides kSides>
__device__ __forceinline__ void decay_keys(const Sweep& s, const Erase& e, const char* keys,
                                           const char* gates, const TokenScalars& scalars, bool written,
                                           int first, T* levels, T* ends, float* whole, uint16_t* vanished,
                                           float* diagonal) {
  constexpr int kTile = kChunk * kKey;
  const T* raw = reinterpret_cast<const T*>(keys);
  const int lane = threadIdx.x % 32, part = lane / 8, channel = first + 2 * (lane % 8);
  Products d;
  float2 q[4], k[4], a[4], b[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int t = 4 * part + j, at = at16(kKey, t, channel);
    float2 g{scalars.gate[t], scalars.gate[t]};
    if (e.decay == Decay::vector)
      g = s.log_decay.type == CudaType::fp32
              ? *reinterpret_cast<const float2*>(gates + at32(kKey, t, channel) * 4)
              : pair_at<T>(gates, at);
    const float keep = scalars.start[t] != 0 ? 0.f : 1.f;
    d.kept[j] = {keep, keep};
    d.decay[j] = {keep * fast_exp2(g.x * kLog2e), keep * fast_exp2(g.y * kLog2e)};
    q[j] = k[j] = a[j] = b[j] = {1, 1};
    if (kSides != Sides::columns) {
      q[j] = times(pair_at<T>(raw, at), {s.scale, s.scale});
      a[j] = pair_at<T>(raw + 2 * kTile, at);
    }
    if (kSides != Sides::rows) {
      const float w = written ? scalars.write[t] : 1.f;
      k[j] = times(pair_at<T>(raw + kTile, at), {w, w});
      b[j] = pair_at<T>(raw + 3 * kTile, at);
    }
  }
  d.multiply();
  const bool upper = part & 2, odd = part & 1;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int at = at16(kKey, 4 * part + j, channel);
    const auto put = [&](T* to, float2 x) { *reinterpret_cast<uint32_t*>(to + at) = pack<T>(x.x, x.y); };
    const auto level = [&](int index, bool row, float2 of_q, float2 of_a, float2 of_column) {
      put(levels + (kQK + index) * kTile, times(select(row, q[j], k[j]), select(row, of_q, of_column)));
      put(levels + (kAB + index) * kTile, times(select(row, a[j], b[j]), select(row, of_a, of_column)));
    };
    level(3, upper, times(d.up[j], d.edge), times(d.before[j], d.edge), times(d.down[j], d.edge));
    level(2, odd, d.up[j], d.before[j], d.down[j]);
    level(1, j & 2, j == 3 ? times(d.decay[2], d.decay[3]) : d.decay[j],
          j == 3 ? times(d.decay[2], d.kept[3]) : d.kept[j], j == 0 ? d.decay[1] : float2{1, 1});
    level(0, j & 1, d.decay[j], d.kept[j], float2{1, 1});
    put(ends, times(q[j], times(d.up[j], d.prior)));
    put(ends + kTile, times(a[j], times(d.before[j], d.prior)));
    put(ends + 2 * kTile, times(k[j], times(d.down[j], d.later)));
    if (kSides != Sides::rows) put(ends + 3 * kTile, times(b[j], times(d.down[j], d.later)));
  }
  if (part == 0) *reinterpret_cast<float2*>(whole + channel) = d.all;
  if (vanished) {
    const uint32_t bits = d.vanished();
    if (part == 0) *reinterpret_cast<uint32_t*>(vanished + channel) = bits;
  }
  if (!diagonal) return;
  float sums[8];
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    sums[j] = q[j].x * k[j].x + q[j].y * k[j].y;
    sums[j + 4] = q[j].x * b[j].x + q[j].y * b[j].y;
  }
  diagonal[lane / 4 % 2 * kChunk + 4 * part + lane % 4] = sum_of_eight(sums);
}

}  // namespace weft::kernels::low_rank
