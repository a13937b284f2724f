// Selective scan, forward. Channels take one lane where there are enough of them to fill the device, more where there are
// fewer; y takes the place of u in shared memory and is written a tile at a time.
#include <algorithm>

#include "ops/scan/selective_tiles.cuh"

namespace weft::kernels {
namespace {

using namespace serial;

// Adds up over the kLanes lanes of a channel; lane l gets numbers l kCount / kLanes + i as x[i].
template <int kLanes, int kCount>
__device__ __forceinline__ void fold(float (&x)[kCount]) {
  int count = kCount;
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const bool upper = threadIdx.x & step;
    count /= 2;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const float kept = upper ? x[i + count] : x[i], sent = upper ? x[i] : x[i + count];
      x[i] = kept + __shfl_xor_sync(0xffffffff, sent, step);
    }
  }
}

// kMaps: only the state that each segment adds to what it was given, and its sum of steps.
template <class T, int kLanes, int kStates, bool kMaps>
__global__ void __launch_bounds__(kThreads, (kLanes * kStates > 16 ? 2 : 4))
    forward_kernel(const CudaSelectiveScan p, int64_t segments, bool vectors) {
  using S = Tiles<T, kLanes, kStates>;
  constexpr int kTile = S::kTile;
  extern __shared__ float4 memory[];
  S& tiles = *reinterpret_cast<S*>(memory);
  const Place<T, kLanes, kStates> x(p, segments, 0, kMaps ? segments - 1 : segments, vectors);
  float a[kStates], h[kStates] = {};
  x.load(a, p.a + x.at(0));
#pragma unroll
  for (float& value : a) value *= kLog2e;
  if constexpr (!kMaps) {
    x.load(h, p.initial ? p.initial + x.at(x.sequence) : nullptr);
    for (int64_t s = 0; s < x.segment; ++s) {
      const int64_t row = x.sequence * segments + s;
      const float steps = x.there ? segment_steps(p, segments)[row * p.channels + x.channel] : 0.0f;
      float more[kStates];
      x.load(more, p.segments + x.at(row));
#pragma unroll
      for (int i = 0; i < kStates; ++i)
        h[i] = steps < 0 ? more[i] : fmaf(fast_exp2(steps * a[i]), h[i], more[i]);
    }
  }
  const float skip = p.skip && x.there ? p.skip[x.channel] : 0.0f;
  float steps = 0.0f;  // negative: a document started
  const int64_t count = (x.end - x.begin + kTile - 1) / kTile;
  const auto fetch = [&](int64_t tile) {
    if (tile < count) {
      x.fetch(tiles, static_cast<int>(tile % kBuffers), p.u, x.begin + tile * kTile);
    }
    copy_async_commit();
  };
  Maps<S> maps(p);
  maps.load(x.rows, x.begin, x.end);
  maps.store(tiles.maps[0]);
  maps.load(x.rows, x.begin + kTile, x.end);
  fetch(0);
  fetch(1);
  uint32_t start = start_at<kTile>(p, x.rows, x.begin, x.end);
  for (int64_t tile = 0; tile < count; ++tile) {
    const int64_t t = x.begin + tile * kTile;
    copy_async_wait<1>();
    __syncthreads();  // the tile is there, and the last one's y
    if (!kMaps && tile > 0) x.write(p.y, tiles.value[(tile - 1) % kBuffers], t - kTile);
    fetch(tile + 2);
    maps.store(tiles.maps[(tile + 1) % 2]);
    maps.load(x.rows, t + 2 * kTile, x.end);
    if (p.saved && !kMaps && t % kCudaSelectiveChunk == 0) {
      const int64_t chunks = (p.tokens + kCudaSelectiveChunk - 1) / kCudaSelectiveChunk;
      x.store(p.saved + x.at(x.sequence * chunks + t / kCudaSelectiveChunk), h);
    }
    auto& u = tiles.value[tile % kBuffers];
    const auto& delta = tiles.delta[tile % kBuffers];
    const auto& rows = tiles.maps[tile % 2];
    const unsigned starts = bits_of(start);
    start = start_at<kTile>(p, x.rows, t + kTile, x.end);
#pragma unroll 1
    for (int group = 0; group < kTile && t + group < x.end; group += kGroup) {
      float sums[kGroup];
      const unsigned here = starts >> group;
      const auto tokens = [&]<bool kStarts>() {
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          const bool start = kStarts && (here >> j & 1);
          const float width = to_float(delta[group + j][x.slot]),
                      input = width * to_float(u[group + j][x.slot]);
          if constexpr (kMaps) steps = start || steps < 0 ? -1.0f : steps + width;
          float b[kStates];
          read_floats(b, &rows[group + j][0][x.first]);
#pragma unroll
          for (int i = 0; i < kStates; ++i)
            h[i] = fmaf(fast_exp2(width * a[i]), start ? 0.0f : h[i], input * b[i]);
          if constexpr (!kMaps) {
            float c[kStates], parts[2] = {};
            read_floats(c, &rows[group + j][1][x.first]);
#pragma unroll
            for (int i = 0; i < kStates; ++i) parts[i % 2] = fmaf(h[i], c[i], parts[i % 2]);
            sums[j] = parts[0] + parts[1];
          }
        }
      };
      if (here & ((1u << kGroup) - 1))
        tokens.template operator()<true>();
      else
        tokens.template operator()<false>();
      if constexpr (!kMaps) {
        constexpr int kEach = kGroup / kLanes;
        fold<kLanes>(sums);
        if constexpr (kLanes > 1) __syncwarp();
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          T& at = u[group + static_cast<int>(threadIdx.x) % kLanes * kEach + i][x.slot];
          at = from_float<T>(fmaf(skip, to_float(at), sums[i]));
        }
      }
    }
  }
  if constexpr (kMaps) {
    const int64_t row = x.sequence * segments + x.segment;
    x.store(p.segments + x.at(row), h);
    if (x.there && x.first == 0) segment_steps(p, segments)[row * p.channels + x.channel] = steps;
  } else {
    __syncthreads();
    if (count > 0) x.write(p.y, tiles.value[(count - 1) % kBuffers], x.begin + (count - 1) * kTile);
    if (x.segment + 1 == segments) x.store(p.state + x.at(x.sequence), h);
  }
}

constexpr int kSplitLanes = 2;  // of a channel, when a sequence is split

double warps_of_scheduler(const CudaSelectiveScan& p, int lanes) {
  return static_cast<double>(p.batch * p.channels * lanes) / (32 * 4 * p.multiprocessors);
}

// Parts of a sequence when its channels give schedulers too few warps: four for each, but none shorter than 256 tokens.
int64_t segments(const CudaSelectiveScan& p) {
  if (p.batch * p.channels == 0) return 1;
  const double warps = warps_of_scheduler(p, p.states > 16 ? 8 : kSplitLanes);
  if (warps > 1.5) return 1;
  const int64_t parts = std::min(static_cast<int64_t>(4 / warps), p.tokens / 256);
  return parts < 3 ? 1 : parts;
}

// Lanes of a channel: as few as give schedulers enough warps.
int lanes_of(const CudaSelectiveScan& p) {
  if (segments(p) > 1) return kSplitLanes;
  if (warps_of_scheduler(p, 1) > 2.5) return 1;
  return warps_of_scheduler(p, 2) > 1.5 ? 2 : 8;
}

// Calls body.run<T, lanes, states>().
template <class Body>
CudaStatus with_shape(const CudaSelectiveScan& p, const Body& body) {
  return with_type(p.type, [&]<class T>(T) {
    if (p.states > 16) return body.template operator()<T, 8, 8>();
    const int lanes = lanes_of(p);
    return lanes == 1   ? body.template operator()<T, 1, 16>()
           : lanes == 2 ? body.template operator()<T, 2, 8>()
                        : body.template operator()<T, 8, 2>();
  });
}

template <class T, int kLanes, int kStates, bool kMaps>
CudaStatus launch(const CudaSelectiveScan& p, int64_t parts, cudaStream_t stream) {
  const auto kernel = forward_kernel<T, kLanes, kStates, kMaps>;
  constexpr size_t kBytes = sizeof(Tiles<T, kLanes, kStates>);
  if (const auto error = allow_shared(kernel, kBytes)) return status_of(error);
  return launch_tiles<T, kLanes, kStates>(
      p, kMaps ? parts - 1 : parts, p.u, p.y,
      [&](unsigned grid, bool vectors) { kernel<<<grid, kThreads, kBytes, stream>>>(p, parts, vectors); });
}

CudaStatus forward(const CudaSelectiveScan& p, void* stream) {
  if (p.batch * p.channels == 0) return nullptr;
  const int64_t parts = segments(p);
  const auto s = static_cast<cudaStream_t>(stream);
  return with_shape(p, [&]<class T, int kLanes, int kStates>() -> CudaStatus {
    if constexpr (kLanes * kStates > 16 || kLanes == kSplitLanes)
      if (parts > 1)
        if (const auto failed = launch<T, kLanes, kStates, true>(p, parts, s)) return failed;
    return launch<T, kLanes, kStates, false>(p, parts, s);
  });
}

CudaStatus backward(const CudaSelectiveGradient& g, void* stream) {
  return g.forward.batch * g.forward.channels == 0 ? nullptr : selective_backward(g, stream);
}

int64_t scratch(const CudaSelectiveScan& p) {
  return p.batch * std::max(segments(p), selective_backward_segments(p)) * p.channels * (p.states + 1);
}

constexpr SelectiveScanCuda kTable = {forward,
                                      backward,
                                      selective_backward_segments,
                                      scratch,
                                      selective_channel_blocks,
                                      selective_gradient_states};

}  // namespace

const SelectiveScanCuda& selective_scan_cuda() { return kTable; }

}  // namespace weft::kernels
