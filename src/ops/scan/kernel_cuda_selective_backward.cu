// Gradients of the selective scan. A block has some channels of one segment of a sequence and walks over its chunks from
// the last to the first. In a chunk it runs forward from the saved state and leaves the state before every group of
// tokens in shared memory, then goes back over the groups: states and decays of one group are in registers. Four lanes
// share kWidth channels, each with kStates states of them. Sums over states are folded so that each lane ends up with one
// channel at one token; gradients of B and C, sums over channels, are added up in a fixed order, over a warp by tensor
// cores when u has 16 bits, over the block in shared memory and over blocks by the caller.
#include <algorithm>

#include "ops/scan/selective_block.cuh"

namespace weft::kernels {
namespace {

using namespace chunked;

constexpr float kLn2 = 0.6931471805599453f;

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocks)
    backward_kernel(const CudaSelectiveGradient g, int64_t segments, bool vectors) {
  constexpr int kWidth = S::kWidth, kStates = S::kStates, kGroup = S::kGroup;
  extern __shared__ float4 memory[];
  Tile<S>& tile = *reinterpret_cast<Tile<S>*>(memory);
  const Block<S> x(g, segments, vectors, tile);
  const CudaSelectiveScan& p = g.forward;
  const int64_t chunks = (p.tokens + kChunk - 1) / kChunk;
  float a[kWidth][kStates], q[kWidth][kStates],
      da[kWidth][kStates] = {};  // q: what the token behind hands over
  x.load_states(a, p.a, 0);
#pragma unroll
  for (auto& row : a)
#pragma unroll
    for (float& value : row) value *= kLog2e;
  x.load_states(q, g.dstate, x.sequence);
  for (int64_t s = segments - 1; s > x.part.index; --s) {
    const int64_t row = x.sequence * segments + s;
    float more[kWidth][kStates];
    x.load_states(more, p.segments, row);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const bool there = x.channel + k < p.channels;
      const float steps = there ? segment_steps(p, segments)[row * p.channels + x.channel + k] : 0.0f;
#pragma unroll
      for (int i = 0; i < kStates; ++i)
        q[k][i] = steps < 0 ? more[k][i] : fmaf(fast_exp2(steps * a[k][i]), q[k][i], more[k][i]);
    }
  }
  // The channel and the token, of 4 / kWidth, whose sums over states the thread gets.
  const int item_channel = x.slot + x.lane / 8 % kWidth, item_token = x.lane / 8 / kWidth;
  const bool item_there = x.first_channel + item_channel < p.channels;
  const float skip = p.skip && item_there ? p.skip[x.first_channel + item_channel] : 0.0f;
  float dskip = 0.0f;

  const int64_t count = (x.part.end - x.part.begin + kChunk - 1) / kChunk;
  float h[kWidth][kStates];
  uint32_t maps[Block<S>::kMaps], start_flag;
  const auto fetch = [&](int64_t chunk) {
    const int64_t begin = x.part.begin + chunk * kChunk;
    x.load_maps(maps, begin);
    x.load_states(h, p.saved, x.sequence * chunks + begin / kChunk);
    start_flag = start_at<kChunk>(p, x.rows, begin, x.part.end);
  };
  if (count > 0) {
    x.fetch(tile.raw[(count - 1) % 2], x.part.begin + (count - 1) * kChunk);
    copy_async_commit();
    fetch(count - 1);
  }
  for (int64_t chunk = count - 1; chunk >= 0; --chunk) {
    const int64_t begin = x.part.begin + chunk * kChunk;
    const auto& raw = tile.raw[chunk % 2];
    copy_async_wait<0>();
    __syncthreads();  // the rows are there, and what the last chunk left has been written
    if (chunk > 0) x.fetch(tile.raw[(chunk - 1) % 2], begin - kChunk);
    copy_async_commit();
    x.widen_rows(raw);
    x.store_maps(maps);
    const unsigned starts = bits_of(start_flag);
    __syncthreads();

    if (chunk > 0) x.prefetch_states(p.saved, x.sequence * chunks + begin / kChunk - 1);
    // Forward over one token; decays go to e.
    const auto advance = [&](int t, bool start, const float(&from)[kWidth][kStates],
                             float(&to)[kWidth][kStates], float(&e)[kWidth][kStates]) {
      float b[kStates], delta[kWidth], input[kWidth];
      read_floats(b, &tile.maps[t][0][x.state]);
      read_floats(delta, &tile.rows[kDelta][t][x.slot]);
      read_floats(input, &tile.rows[kInput][t][x.slot]);
#pragma unroll
      for (int k = 0; k < kWidth; ++k)
#pragma unroll
        for (int i = 0; i < kStates; ++i) {
          e[k][i] = fast_exp2(delta[k] * a[k][i]);
          to[k][i] = fmaf(e[k][i], start ? 0.0f : from[k][i], input[k] * b[i]);
        }
    };
    x.keep(0, h);
#pragma unroll 1
    for (int group = 0; group < S::kGroups - 1; ++group) {
      const auto tokens = [&]<bool kStarts>() {
#pragma unroll
        for (int j = 0; j < kGroup; ++j) {
          float e[kWidth][kStates];
          advance(group * kGroup + j, kStarts && (starts >> (group * kGroup + j) & 1), h, h, e);
        }
      };
      if (starts)
        tokens.template operator()<true>();
      else
        tokens.template operator()<false>();
      x.keep(group + 1, h);
    }

#pragma unroll 1
    for (int group = S::kGroups - 1; group >= 0; --group) {
      const int first = group * kGroup;
      if (begin + first >= x.part.end) continue;
      const unsigned here = starts >> first;
      const auto tokens = [&]<bool kStarts>() {
        const auto start = [&](int j) { return kStarts && (here >> j & 1); };
        float states[kGroup + 1][kWidth][kStates], e[kGroup][kWidth][kStates];
        x.recall(group, states[0]);
#pragma unroll
        for (int j = 0; j < kGroup; ++j) advance(first + j, start(j), states[j], states[j + 1], e[j]);
        [[maybe_unused]] float products[kStates][4] = {};
        float values[2][2][kStates];  // [token of two][b, c], summed over the thread's channels
        float inner[4], slope[4];     // sums over states of G b and of a dx
#pragma unroll
        for (int j = kGroup - 1; j >= 0; --j) {
          const int t = first + j;
          float b[kStates], c[kStates], delta[kWidth], input[kWidth], up[kWidth];
          read_floats(b, &tile.maps[t][0][x.state]);
          read_floats(c, &tile.maps[t][1][x.state]);
          read_floats(delta, &tile.rows[kDelta][t][x.slot]);
          read_floats(input, &tile.rows[kInput][t][x.slot]);
          read_floats(up, &tile.rows[kUp][t][x.slot]);
          auto& value = values[j % 2];
#pragma unroll
          for (int k = 0; k < kWidth; ++k) {
            float inner_sum = 0.0f, slope_sum = 0.0f;
#pragma unroll
            for (int i = 0; i < kStates; ++i) {
              const float gradient = fmaf(c[i], up[k], q[k][i]);
              value[0][i] = k == 0 ? input[k] * gradient : fmaf(input[k], gradient, value[0][i]);
              value[1][i] =
                  k == 0 ? up[k] * states[j + 1][k][i] : fmaf(up[k], states[j + 1][k][i], value[1][i]);
              inner_sum = fmaf(gradient, b[i], inner_sum);
              q[k][i] = e[j][k][i] * gradient;
              float dx = q[k][i] * states[j][k][i];
              if (start(j)) dx = q[k][i] = 0.0f;
              da[k][i] = fmaf(delta[k], dx, da[k][i]);
              slope_sum = fmaf(a[k][i], dx, slope_sum);
            }
            inner[j * kWidth % 4 + k] = inner_sum, slope[j * kWidth % 4 + k] = slope_sum;
          }
          if constexpr (!S::kTensor) {
            x.add_up(t, value);
          } else if (j % 2 == 0) {
            const float even = x.lane / 4 == j ? 1.0f : 0.0f, odd = x.lane / 4 == j + 1 ? 1.0f : 0.0f;
#pragma unroll
            for (int i = 0; i < kStates; ++i)
              multiply_add(products[i], values[0][0][i], values[0][1][i], values[1][0][i], values[1][1][i],
                           even, odd);
          }
          if (j * kWidth % 4 == 0) {
            const float inner_sum = fold(inner), slope_sum = fold(slope) * kLn2;
            const int item = t + item_token;
            const float width = tile.rows[kDelta][item][item_channel], y = tile.rows[kUp][item][item_channel],
                        u = to_float(raw[1][item][item_channel]);
            __syncwarp();
            tile.rows[kDelta][item][item_channel] = fmaf(u, inner_sum, slope_sum);
            tile.rows[kInput][item][item_channel] = fmaf(width, inner_sum, skip * y);
            dskip = fmaf(y, u, dskip);
          }
        }
        if constexpr (S::kTensor) x.add_up(first, products);
      };
      if (here & ((1u << kGroup) - 1))
        tokens.template operator()<true>();
      else
        tokens.template operator()<false>();
    }
    if (chunk > 0) fetch(chunk - 1);
    __syncthreads();
    x.write_maps(begin);
    x.store_rows(begin);
  }
  const int64_t row = x.sequence * segments + x.part.index;
  x.store_states(g.da, row, da);
  if (x.part.index == 0) x.store_states(g.dinitial, x.sequence, q);
#pragma unroll
  for (int step = 8 * kWidth; step < 32; step *= 2) dskip += __shfl_xor_sync(0xffffffff, dskip, step);
  if (item_there && item_token == 0) g.dskip[row * p.channels + x.first_channel + item_channel] = dskip;
}

// Two blocks of a multiprocessor, with 32 bits one larger one, when it has as much shared memory as Hopper's. Small: for
// those that have less.
template <class T>
using Few = Shape<T, 2, 4, 8, sizeof(T) == 2 ? 128 : 256, sizeof(T) == 2 ? 2 : 1>;
template <class T>
using Small = Shape<T, 2, 4, 8, 64, 1>;
template <class T>
using Many = Shape<T, 1, 16, 4, 128, 1>;
constexpr int kRoomy = 227 * 1024;
static_assert(sizeof(Tile<Few<float>>) <= kRoomy && sizeof(Tile<Many<float>>) <= kRoomy &&
              2 * (sizeof(Tile<Few<bf16>>) + 1024) <= kRoomy + 1024 &&
              sizeof(Tile<Small<float>>) <= 99 * 1024);

bool roomy() { return shared_limit() >= kRoomy; }

// Calls body.run<Shape>().
template <class Body>
CudaStatus with_block(const CudaSelectiveScan& p, const Body& body) {
  const bool room = roomy();
  return with_type(p.type, [&]<class T>(T) {
    if (p.states > Few<T>::kRow) return body.template operator()<Many<T>>();
    return room ? body.template operator()<Few<T>>() : body.template operator()<Small<T>>();
  });
}

template <class S>
CudaStatus launch(const CudaSelectiveGradient& g, int64_t segments, cudaStream_t stream) {
  using T = typename S::T;
  const auto& p = g.forward;
  constexpr int kPiece = 16 / sizeof(T);
  bool vectors = true;
  for (const void* x :
       {p.u, p.delta, g.dy, static_cast<const void*>(g.du), static_cast<const void*>(g.ddelta)})
    vectors = vectors && packs(x, p.channels, kPiece, sizeof(T));
  const int64_t blocks = p.batch * segments * selective_channel_blocks(p);
  if (const auto error = allow_shared(backward_kernel<S>, sizeof(Tile<S>))) return status_of(error);
  backward_kernel<S>
      <<<static_cast<unsigned>(blocks), S::kThreads, sizeof(Tile<S>), stream>>>(g, segments, vectors);
  return last_status();
}

}  // namespace

int64_t selective_gradient_states() { return roomy() ? Many<float>::kRow : Small<float>::kRow; }

int64_t selective_channel_blocks(const CudaSelectiveScan& p) {
  int64_t blocks = 0;
  with_block(p, [&]<class S>() {
    blocks = (p.channels + S::kChannels - 1) / S::kChannels;
    return CudaStatus{};
  });
  return blocks;
}

// As many as fill the device with blocks, but none shorter than 256 tokens.
int64_t selective_backward_segments(const CudaSelectiveScan& p) {
  int64_t resident = 1;
  with_block(p, [&]<class S>() {
    resident = S::kBlocks;
    return CudaStatus{};
  });
  const int64_t blocks = std::max<int64_t>(p.batch * selective_channel_blocks(p), 1);
  return std::max<int64_t>(1, std::min(p.multiprocessors * resident / blocks, p.tokens / 256));
}

CudaStatus selective_backward(const CudaSelectiveGradient& g, void* stream) {
  const int64_t segments = selective_backward_segments(g.forward);
  if (segments > 1)
    if (const auto failed = selective_carry(g, segments, stream)) return failed;
  return with_block(g.forward,
                    [&]<class S>() { return launch<S>(g, segments, static_cast<cudaStream_t>(stream)); });
}

}  // namespace weft::kernels
