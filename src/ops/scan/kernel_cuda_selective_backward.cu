// Gradients of the selective scan. A block has some channels of one segment of a sequence and walks over its chunks from
// the last to the first. In a chunk it first runs forward from the saved state and leaves the state before every kGroup
// tokens in shared memory, then goes back over the groups: states and decays of one group are in registers. Neighbouring
// lanes have two states each of one channel; sums over states are folded so that each lane ends up with one token.
// Gradients of B and C, sums over channels, are added up in a fixed order, over the block in shared memory and over blocks
// by the caller.
#include <algorithm>

#include "ops/scan/selective.cuh"

namespace weft::kernels {
namespace {

constexpr int kThreads = 256, kLoop = 2;  // channels of a thread, one after the other
constexpr int kChunk = kCudaSelectiveChunk, kGroup = 8, kGroups = kChunk / kGroup;
constexpr int kRow = kChunk + 4;  // a channel's tokens in shared memory: rows begin in different banks
constexpr int kSums = 4 * kGroup, kPad = kSums + 4;  // of a thread: two of each map for each token of a group

// kLanes of a channel, two states each.
template <int kLanes>
struct Tile {
  static constexpr int kSlots = kThreads / kLanes, kChannels = kSlots * kLoop, kStates = 2 * kLanes;
  float u[kChannels][kRow], delta[kChannels][kRow], dy[kChannels][kRow];
  float4 maps[kChunk][kLanes];  // b0, b1, c0, c1
  float2 states[kGroups][kLoop][kThreads];
  float sums[kThreads][kPad];
};

// Adds up over the kLanes lanes of a channel; of the eight sums lane l gets number l % 8.
template <int kLanes>
__device__ __forceinline__ float fold(float (&x)[kGroup]) {
  static_assert(kGroup == 8 && kLanes >= 8);
#pragma unroll
  for (int step = kLanes / 2; step >= kGroup; step /= 2)
#pragma unroll
    for (float& value : x) value += __shfl_xor_sync(0xffffffff, value, step);
#pragma unroll
  for (int half = kGroup / 2; half > 0; half /= 2) {
    const bool upper = threadIdx.x & half;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float kept = upper ? x[i + half] : x[i], sent = upper ? x[i] : x[i + half];
      x[i] = kept + __shfl_xor_sync(0xffffffff, sent, half);
    }
  }
  return x[0];
}

template <class T, int kLanes>
struct Block {
  using S = Tile<kLanes>;
  const CudaSelectiveGradient& g;
  const CudaSelectiveScan& p;
  S& tile;
  int64_t sequence, group, rows, channel[kLoop];  // rows: the first of the sequence
  Segment part;
  int lane, slot;
  bool there[kLoop], state_there[2];

  __device__ Block(const CudaSelectiveGradient& gradient, int64_t segments, S& shared)
      : g(gradient), p(gradient.forward), tile(shared) {
    const int64_t groups = (p.channels + S::kChannels - 1) / S::kChannels;
    group = blockIdx.x % groups;
    part = segment_of(p, blockIdx.x / groups % segments, segments);
    sequence = blockIdx.x / groups / segments;
    rows = sequence * p.tokens;
    lane = static_cast<int>(threadIdx.x) % kLanes, slot = static_cast<int>(threadIdx.x) / kLanes;
#pragma unroll
    for (int k = 0; k < kLoop; ++k) {
      channel[k] = group * S::kChannels + k * S::kSlots + slot;
      there[k] = channel[k] < p.channels;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) state_there[i] = 2 * lane + i < p.states;
  }

  // The thread's two states in row `row` of [rows, E, N].
  __device__ float2 load_states(const float* from, int64_t row, int k) const {
    const float* const at = from + (row * p.channels + channel[k]) * p.states + 2 * lane;
    return {from && there[k] && state_there[0] ? at[0] : 0.0f,
            from && there[k] && state_there[1] ? at[1] : 0.0f};
  }
  __device__ void store_states(float* to, int64_t row, int k, float2 x) const {
    float* const at = to + (row * p.channels + channel[k]) * p.states + 2 * lane;
    if (there[k] && state_there[0]) at[0] = x.x;
    if (there[k] && state_there[1]) at[1] = x.y;
  }

  // Four tokens of one channel at a time: rows of channels in memory, rows of tokens in shared memory.
  __device__ void load_rows(float (&to)[S::kChannels][kRow], const void* from, int64_t begin) const {
    const T* const data = static_cast<const T*>(from);
    for (int index = threadIdx.x; index < S::kChannels * kChunk / 4; index += kThreads) {
      const int c = index % S::kChannels, t = index / S::kChannels * 4;
      const int64_t at = group * S::kChannels + c;
      float x[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        x[i] = at < p.channels && begin + t + i < part.end
                   ? to_float(data[(rows + begin + t + i) * p.channels + at])
                   : 0.0f;
      *reinterpret_cast<float4*>(&to[c][t]) = {x[0], x[1], x[2], x[3]};
    }
  }
  __device__ void store_rows(void* to, const float (&from)[S::kChannels][kRow], int64_t begin) const {
    T* const data = static_cast<T*>(to);
    for (int index = threadIdx.x; index < S::kChannels * kChunk / 4; index += kThreads) {
      const int c = index % S::kChannels, t = index / S::kChannels * 4;
      const int64_t at = group * S::kChannels + c;
      const float4 x = *reinterpret_cast<const float4*>(&from[c][t]);
      const float tokens[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (at < p.channels && begin + t + i < part.end)
          data[(rows + begin + t + i) * p.channels + at] = from_float<T>(tokens[i]);
    }
  }
  __device__ void load_maps(int64_t begin) const {
    for (int index = threadIdx.x; index < kChunk * S::kStates; index += kThreads) {
      const int t = index / S::kStates, n = index % S::kStates;
      const bool valid = begin + t < part.end && n < p.states;
      const int64_t at = (rows + begin + t) * p.states + n;
      float* const to = reinterpret_cast<float*>(&tile.maps[t][n / 2]) + n % 2;
      to[0] = valid ? element(p.b, p.map_type, at) : 0.0f;
      to[2] = valid ? element(p.c, p.map_type, at) : 0.0f;
    }
  }

  // The block's sums of the gradients of B and C for the tokens [begin, begin + kGroup).
  __device__ void write_maps(int64_t begin) const {
    const int64_t blocks = (p.channels + S::kChannels - 1) / S::kChannels,
                  each = p.batch * p.tokens * p.states;
#pragma unroll
    for (int index = threadIdx.x; index < kSums * kLanes; index += kThreads) {
      const int pair = index % kLanes, number = index / kLanes;  // token, which of two states, b or c
      float sum = 0.0f;
#pragma unroll 8
      for (int s = 0; s < S::kSlots; ++s) sum += tile.sums[s * kLanes + pair][number];
      const int64_t t = begin + number / 4;
      const int n = 2 * pair + number / 2 % 2;
      if (t < part.end && n < p.states)
        g.maps[(number % 2 * blocks + group) * each + (rows + t) * p.states + n] = sum;
    }
  }
};

template <class T, int kLanes>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(const CudaSelectiveGradient g, int64_t segments) {
  using S = Tile<kLanes>;
  extern __shared__ float4 memory[];
  S& tile = *reinterpret_cast<S*>(memory);
  const Block<T, kLanes> x(g, segments, tile);
  const CudaSelectiveScan& p = g.forward;
  const int64_t chunks = (p.tokens + kChunk - 1) / kChunk;
  float2 a[kLoop], q[kLoop], da[kLoop] = {};  // q: what the token behind hands over
  float skip[kLoop], dskip[kLoop] = {};
#pragma unroll
  for (int k = 0; k < kLoop; ++k) {
    a[k] = x.load_states(p.a, 0, k);
    q[k] = x.load_states(g.dstate, x.sequence, k);
    skip[k] = p.skip && x.there[k] ? p.skip[x.channel[k]] : 0.0f;
    for (int64_t s = segments - 1; s > x.part.index; --s) {
      const int64_t row = x.sequence * segments + s;
      const float steps = x.there[k] ? segment_steps(p, segments)[row * p.channels + x.channel[k]] : 0.0f;
      const float2 more = x.load_states(p.segments, row, k);
      q[k].x = steps < 0 ? more.x : fmaf(fast_exp2(steps * kLog2e * a[k].x), q[k].x, more.x);
      q[k].y = steps < 0 ? more.y : fmaf(fast_exp2(steps * kLog2e * a[k].y), q[k].y, more.y);
    }
  }
  const int64_t count = (x.part.end - x.part.begin + kChunk - 1) / kChunk;
  for (int64_t chunk = count - 1; chunk >= 0; --chunk) {
    const int64_t begin = x.part.begin + chunk * kChunk;
    __syncthreads();
    x.load_rows(tile.u, p.u, begin);
    x.load_rows(tile.delta, p.delta, begin);
    x.load_rows(tile.dy, g.dy, begin);
    x.load_maps(begin);
    const unsigned starts = starts_at<kChunk>(p, x.rows, begin, x.part.end);
    __syncthreads();

#pragma unroll
    for (int k = 0; k < kLoop; ++k) {
      const int c = k * S::kSlots + x.slot;
      const float2 scaled = {a[k].x * kLog2e, a[k].y * kLog2e};
      float2 h = x.load_states(p.saved, x.sequence * chunks + begin / kChunk, k);
      tile.states[0][k][threadIdx.x] = h;
      for (int group = 0; group < kGroups - 1; ++group) {
        const int first = group * kGroup;
        const auto tokens = [&]<bool kStarts>() {
#pragma unroll
          for (int j = 0; j < kGroup; ++j) {
            const int t = first + j;
            const bool start = kStarts && (starts >> t & 1);
            const float delta = tile.delta[c][t], input = delta * tile.u[c][t];
            const float2 b = *reinterpret_cast<const float2*>(&tile.maps[t][x.lane]);
            h.x = fmaf(fast_exp2(delta * scaled.x), start ? 0.0f : h.x, input * b.x);
            h.y = fmaf(fast_exp2(delta * scaled.y), start ? 0.0f : h.y, input * b.y);
          }
        };
        if (starts)
          tokens.template operator()<true>();
        else
          tokens.template operator()<false>();
        tile.states[group + 1][k][threadIdx.x] = h;
      }
    }

    for (int group = kGroups - 1; group >= 0; --group) {
      const int first = group * kGroup;
      const unsigned here = starts >> first;
      float4 sums[kGroup];  // of b and c for the first state, for the second
#pragma unroll
      for (int k = 0; k < kLoop; ++k) {
        const int c = k * S::kSlots + x.slot;
        const float2 scaled = {a[k].x * kLog2e, a[k].y * kLog2e};
        float2 h[kGroup + 1], e[kGroup];
        float delta[kGroup], u[kGroup], dy[kGroup];
#pragma unroll
        for (int j = 0; j < kGroup; j += 4) {
          const float4 d = *reinterpret_cast<const float4*>(&tile.delta[c][first + j]),
                       v = *reinterpret_cast<const float4*>(&tile.u[c][first + j]),
                       y = *reinterpret_cast<const float4*>(&tile.dy[c][first + j]);
          delta[j] = d.x, delta[j + 1] = d.y, delta[j + 2] = d.z, delta[j + 3] = d.w;
          u[j] = v.x, u[j + 1] = v.y, u[j + 2] = v.z, u[j + 3] = v.w;
          dy[j] = y.x, dy[j + 1] = y.y, dy[j + 2] = y.z, dy[j + 3] = y.w;
        }
        h[0] = tile.states[group][k][threadIdx.x];
        float inner[kGroup], slope[kGroup];  // sums over states of G b and of a dx
        const auto tokens = [&]<bool kStarts>() {
          const auto start = [&](int j) { return kStarts && (here >> j & 1); };
#pragma unroll
          for (int j = 0; j < kGroup; ++j) {
            const float2 before = start(j) ? float2{0.0f, 0.0f} : h[j];
            const float2 b = *reinterpret_cast<const float2*>(&tile.maps[first + j][x.lane]);
            const float input = delta[j] * u[j];
            e[j] = {fast_exp2(delta[j] * scaled.x), fast_exp2(delta[j] * scaled.y)};
            h[j + 1] = {fmaf(e[j].x, before.x, input * b.x), fmaf(e[j].y, before.y, input * b.y)};
          }
#pragma unroll
          for (int j = kGroup - 1; j >= 0; --j) {
            const float4 m = tile.maps[first + j][x.lane];
            const float2 gradient = {fmaf(m.z, dy[j], q[k].x), fmaf(m.w, dy[j], q[k].y)};
            const float input = delta[j] * u[j];
            const float4 more = {input * gradient.x, dy[j] * h[j + 1].x, input * gradient.y,
                                 dy[j] * h[j + 1].y};
            if (k == 0)
              sums[j] = more;
            else
              sums[j] = {sums[j].x + more.x, sums[j].y + more.y, sums[j].z + more.z, sums[j].w + more.w};
            inner[j] = gradient.x * m.x + gradient.y * m.y;
            q[k] = {e[j].x * gradient.x, e[j].y * gradient.y};
            float2 dx = {q[k].x * h[j].x, q[k].y * h[j].y};
            if (start(j)) dx = q[k] = {0.0f, 0.0f};
            da[k] = {fmaf(delta[j], dx.x, da[k].x), fmaf(delta[j], dx.y, da[k].y)};
            slope[j] = a[k].x * dx.x + a[k].y * dx.y;
          }
        };
        if (here & ((1u << kGroup) - 1))
          tokens.template operator()<true>();
        else
          tokens.template operator()<false>();
        const float inner_sum = fold<kLanes>(inner), slope_sum = fold<kLanes>(slope);
        if (x.lane < kGroup) {
          const int t = first + x.lane;
          const float step = tile.delta[c][t], input = tile.u[c][t], up = tile.dy[c][t];
          tile.delta[c][t] = fmaf(input, inner_sum, slope_sum);
          tile.u[c][t] = fmaf(step, inner_sum, skip[k] * up);
          dskip[k] = fmaf(up, input, dskip[k]);
        }
      }
      __syncthreads();  // the last group's sums have been read
#pragma unroll
      for (int j = 0; j < kGroup; ++j) *reinterpret_cast<float4*>(&tile.sums[threadIdx.x][4 * j]) = sums[j];
      __syncthreads();
      x.write_maps(begin + first);
    }
    __syncthreads();
    x.store_rows(g.ddelta, tile.delta, begin);
    x.store_rows(g.du, tile.u, begin);
  }
  const int64_t row = x.sequence * segments + x.part.index;
#pragma unroll
  for (int k = 0; k < kLoop; ++k) {
    x.store_states(g.da, row, k, da[k]);
    if (x.part.index == 0) x.store_states(g.dinitial, x.sequence, k, q[k]);
    const float sum = warp_sum<kLanes>(dskip[k]);
    if (x.there[k] && x.lane == 0) g.dskip[row * p.channels + x.channel[k]] = sum;
  }
}

template <class T, int kLanes>
CudaStatus launch(const CudaSelectiveGradient& g, int64_t segments, cudaStream_t stream) {
  using S = Tile<kLanes>;
  const auto& p = g.forward;
  const int64_t blocks = p.batch * segments * ((p.channels + S::kChannels - 1) / S::kChannels);
  if (const auto error = allow_shared(backward_kernel<T, kLanes>, sizeof(S))) return status_of(error);
  backward_kernel<T, kLanes><<<static_cast<unsigned>(blocks), kThreads, sizeof(S), stream>>>(g, segments);
  return last_status();
}

}  // namespace

CudaStatus selective_backward(const CudaSelectiveGradient& g, int64_t segments, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  return with_type(g.forward.type, [&]<class T>(T) {
    return g.forward.states <= Tile<8>::kStates ? launch<T, 8>(g, segments, s)
                                                : launch<T, 32>(g, segments, s);
  });
}

int64_t selective_channel_blocks(const CudaSelectiveScan& p) {
  const int64_t channels = p.states <= Tile<8>::kStates ? Tile<8>::kChannels : Tile<32>::kChannels;
  return (p.channels + channels - 1) / channels;
}

}  // namespace weft::kernels
