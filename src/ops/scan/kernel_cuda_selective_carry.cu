// Selective scan, backward in several parts: the gradient of the state that each part but the first hands to the one
// before when it gets none from the one behind.
#include "ops/scan/selective_tiles.cuh"

namespace weft::kernels {
namespace {

using namespace serial;

// q_t = exp(delta_t a) (c_t dy_t + q_{t+1}), zero where a document starts.
template <class T, int kLanes, int kStates>
__global__ void __launch_bounds__(kThreads, (kLanes * kStates > 16 ? 2 : 4))
    carry_kernel(const CudaSelectiveGradient g, int64_t segments, bool vectors) {
  using S = Tiles<T, kLanes, kStates>;
  constexpr int kTile = S::kTile;
  extern __shared__ float4 memory[];
  S& tiles = *reinterpret_cast<S*>(memory);
  const CudaSelectiveScan& p = g.forward;
  const Place<T, kLanes, kStates> x(p, segments, 1, segments - 1, vectors);
  float a[kStates], q[kStates] = {};
  x.load(a, p.a + x.at(0));
#pragma unroll
  for (float& value : a) value *= kLog2e;
  float steps = 0.0f;  // negative: a document started
  const int64_t count = (x.end - x.begin + kTile - 1) / kTile;
  // Tiles in the order in which they are taken, the last first.
  const auto begin_of = [&](int64_t tile) { return x.begin + (count - 1 - tile) * kTile; };
  const auto fetch = [&](int64_t tile) {
    if (tile < count) {
      x.fetch(tiles, static_cast<int>(tile % kBuffers), g.dy, begin_of(tile));
    }
    copy_async_commit();
  };
  Maps<S> maps(p);
  const auto load_maps = [&](int64_t tile) {
    if (tile < count) maps.load(x.rows, begin_of(tile), x.end);
  };
  load_maps(0);
  maps.store(tiles.maps[0]);
  load_maps(1);
  fetch(0);
  fetch(1);
  uint32_t start_flag = start_at<kTile>(p, x.rows, begin_of(0), x.end);
  for (int64_t tile = 0; tile < count; ++tile) {
    copy_async_wait<1>();
    __syncthreads();
    fetch(tile + 2);
    maps.store(tiles.maps[(tile + 1) % 2]);
    load_maps(tile + 2);
    const auto& dy = tiles.value[tile % kBuffers];
    const auto& delta = tiles.delta[tile % kBuffers];
    const auto& rows = tiles.maps[tile % 2];
    const unsigned starts = bits_of(start_flag);
    start_flag = tile + 1 < count ? start_at<kTile>(p, x.rows, begin_of(tile + 1), x.end) : 0;
#pragma unroll 1
    for (int group = kTile - kGroup; group >= 0; group -= kGroup) {
      const unsigned here = starts >> group;
      const auto tokens = [&]<bool kStarts>() {
#pragma unroll
        for (int j = kGroup - 1; j >= 0; --j) {
          const bool start = kStarts && (here >> j & 1);
          const float width = to_float(delta[group + j][x.slot]), up = to_float(dy[group + j][x.slot]);
          steps = start || steps < 0 ? -1.0f : steps + width;
          float c[kStates];
          read_floats(c, &rows[group + j][1][x.first]);
#pragma unroll
          for (int i = 0; i < kStates; ++i) {
            const float next = fast_exp2(width * a[i]) * fmaf(c[i], up, q[i]);
            q[i] = start ? 0.0f : next;
          }
        }
      };
      if (here & ((1u << kGroup) - 1))
        tokens.template operator()<true>();
      else
        tokens.template operator()<false>();
    }
  }
  const int64_t row = x.sequence * segments + x.segment;
  x.store(p.segments + x.at(row), q);
  if (x.there && x.first == 0) segment_steps(p, segments)[row * p.channels + x.channel] = steps;
}

template <class T, int kLanes, int kStates>
CudaStatus launch(const CudaSelectiveGradient& g, int64_t segments, cudaStream_t stream) {
  const auto kernel = carry_kernel<T, kLanes, kStates>;
  constexpr size_t kBytes = sizeof(Tiles<T, kLanes, kStates>);
  if (const auto error = allow_shared(kernel, kBytes)) return status_of(error);
  return launch_tiles<T, kLanes, kStates>(
      g.forward, segments - 1, g.dy, nullptr,
      [&](unsigned grid, bool vectors) { kernel<<<grid, kThreads, kBytes, stream>>>(g, segments, vectors); });
}

}  // namespace

CudaStatus selective_carry(const CudaSelectiveGradient& g, int64_t segments, void* stream) {
  const auto s = static_cast<cudaStream_t>(stream);
  return with_type(g.forward.type, [&]<class T>(T) {
    return g.forward.states <= 16 ? launch<T, 2, 8>(g, segments, s) : launch<T, 8, 8>(g, segments, s);
  });
}

}  // namespace weft::kernels
