// Few queries against many keys: the heads of a group are rows of one tile of 16, the keys are split over blocks and
// warps, and partial results are added up in the order of the splits. Every warp has its own keys under way. It reads 8
// numbers of a row at a time: the numbers of a head and the columns of the result are permuted so that these are
// operands of tensor core products, and 8-bit ones are widened only in registers.
#include <algorithm>

#include "ops/attention/kernel_cuda_ring.cuh"
#include "ops/attention/kernel_cuda_tile.cuh"
#include "ops/cuda/early.cuh"

namespace weft::kernels {
namespace {

constexpr int kRows = 16;
constexpr int kMostRows = 64;  // of a key head, from which on a tile of 128 rows pays
constexpr int kCombineWarps = 4;

// Of a block: they need shared memory for what is under way, and 8-bit keys come 32 at a time.
constexpr int kFewWarps = 4, kManyWarps = 8;
int ring_bytes(const AttentionCuda& p) {
  const bool narrow = std::max(p.key_width, p.value_width) <= 64;
  return p.k.scale ? (narrow ? Ring<64, true>::kBytes : Ring<128, true>::kBytes)
                   : (narrow ? Ring<64, false>::kBytes : Ring<128, false>::kBytes);
}

// `partial`: floats of a partial result, V sums for each row, then for each the largest exponent and the sum.
struct Sizes {
  int rows, row_tiles, splits, warps;
  int64_t partial;

  __host__ __device__ int64_t part(const AttentionCuda& p, int batch, int key_head, int tile,
                                   int split) const {
    return (((int64_t{batch} * p.key_heads + key_head) * row_tiles + tile) * splits + split) * partial;
  }
};

Sizes sizes_of(const AttentionCuda& p, const AttentionDevice& device) {
  Sizes s;
  s.rows = p.queries * p.group();
  s.row_tiles = (s.rows + kRows - 1) / kRows;
  const int64_t blocks = int64_t{p.batch} * p.key_heads * s.row_tiles;
  const bool many = !p.k.scale && kManyWarps * ring_bytes(p) <= shared_limit();
  s.warps = many ? kManyWarps : kFewWarps;
  const int blocks_together = kManyWarps / s.warps * device.multiprocessors;
  s.splits = static_cast<int>(std::clamp<int64_t>(blocks_together / std::max<int64_t>(blocks, 1), 1,
                                                  std::max(mask_tiles(p.keys), 1)));
  s.partial = kRows * (p.value_width + 2);
  return s;
}

// Four columns of a row's sums, of exponentials relative to the largest exponent so far.
struct Partial {
  float largest = kMinusInfinity, total = 0;
  float4 sum = {0, 0, 0, 0};

  __device__ __forceinline__ void raise(float exponent) {
    const float now = fmaxf(largest, exponent);
    const float factor = now == kMinusInfinity ? 0 : fast_exp2(largest - now);
    total *= factor;
    sum.x *= factor, sum.y *= factor, sum.z *= factor, sum.w *= factor;
    largest = now;
  }
  // What is relative to part.x, not above the largest, and has the sum part.y.
  __device__ __forceinline__ void add(float2 part, float4 x) {
    const float factor = largest == kMinusInfinity ? 0 : fast_exp2(part.x - largest);
    total = fmaf(factor, part.y, total);
    sum.x = fmaf(factor, x.x, sum.x), sum.y = fmaf(factor, x.y, sum.y);
    sum.z = fmaf(factor, x.z, sum.z), sum.w = fmaf(factor, x.w, sum.w);
  }
  // Results of row `row` of the key head, and its lse.
  template <class T>
  __device__ __forceinline__ void store(const AttentionCuda& p, int batch, int key_head, int row,
                                        int column) const {
    const int64_t at =
        (int64_t{batch} * p.queries + row / p.group()) * p.heads + key_head * p.group() + row % p.group();
    const float inverse = total == 0 ? 0 : 1 / total;
    *reinterpret_cast<uint2*>(static_cast<T*>(p.out.data) + at * p.value_width + column) =
        make_uint2(pack<T>(sum.x * inverse, sum.y * inverse), pack<T>(sum.z * inverse, sum.w * inverse));
    if (column == 0) p.lse[at] = total == 0 ? kMinusInfinity : largest * kLn2 + logf(total);
  }
};

template <class T, int kWidth, bool kInt8, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, kManyWarps / kWarps)
    decode_kernel(const __grid_constant__ AttentionCuda p, Sizes sizes, float* scratch) {
  using WarpRing = Ring<kWidth, kInt8>;
  constexpr int kRingBytes = kWarps * WarpRing::kBytes;
  extern __shared__ __align__(16) char shared_bytes[];
  const int split = blockIdx.x % sizes.splits, tile = blockIdx.x / sizes.splits, key_head = blockIdx.y,
            batch = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, c = lane % 4;
  const WarpRing ring{shared_bytes + warp * WarpRing::kBytes};
  constexpr int kKeys = WarpRing::kKeys, kSteps = kMaskTile / kWarps / kKeys;
  using Cursor = KeyCursor<kSteps>;
  wait_for_last();
  const KeyTiles tiles(p.mask, batch);
  const int begin = static_cast<int>(int64_t{tiles.count} * split / sizes.splits),
            steps = (static_cast<int>(int64_t{tiles.count} * (split + 1) / sizes.splits) - begin) * kSteps;
  const auto slot_of = [&](const Cursor& at) {
    return at.tile * kMaskTile + (warp * kSteps + at.part) * kKeys;
  };
  Cursor now(tiles, begin), ahead = now;
  for (int i = 0; i < WarpRing::kStages - 1; ++i) {
    if (i < steps) ring.load(p, batch, key_head, slot_of(ahead), i), ahead.next();
    copy_async_commit();
  }
  let_next_start();

  // Rows g and g + 8 of the tile; those past the last compute something that nobody reads.
  uint32_t q[kWidth / 16][4];
  QueryLimits limits[2];
  float slope[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = tile * kRows + g + 8 * r, token = min(row / p.group(), p.queries - 1),
              head = key_head * p.group() + row % p.group();
    limits[r] = query_limits(p.mask, batch, token, head);
    slope[r] = p.slopes ? p.slopes[head] : 0.0f;
    const T* const from =
        static_cast<const T*>(p.q.data) + batch * p.q.batch + token * p.q.token + head * p.q.head;
#pragma unroll
    for (int k = 0; k < kWidth / 32; ++k) {
      const int column = 32 * k + 8 * c;
      const uint4 x =
          column < p.key_width ? *reinterpret_cast<const uint4*>(from + column) : make_uint4(0, 0, 0, 0);
      q[2 * k][r] = x.x, q[2 * k][2 + r] = x.y, q[2 * k + 1][r] = x.z, q[2 * k + 1][2 + r] = x.w;
    }
  }
  const Scoring scoring(p, key_head * p.group());
  const KeySlots slots = key_slots(p.mask, batch);
  OnlineSoftmax softmax;
  float out[kWidth / 8][4] = {};

  for (int stage = 0; stage < steps; ++stage, now.next()) {
    copy_async_wait<WarpRing::kStages - 2>();
    __syncwarp();
    const int next = stage + WarpRing::kStages - 1;
    if (next < steps) ring.load(p, batch, key_head, slot_of(ahead), next), ahead.next();
    copy_async_commit();
    const int slot = slot_of(now);
    const bool full = now.full();
    float s[kKeys / 8][4] = {};
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int i = 0; i < kWidth / 32; ++i) {
        uint32_t k[4];
        load8<T, kInt8>(k, ring.keys(stage) + (8 * n + g) * ring.kRowBytes, 32 * i + 8 * c);
        multiply_add<T>(s[n], q[2 * i], k[0], k[1]);
        multiply_add<T>(s[n], q[2 * i + 1], k[2], k[3]);
      }
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 8 * n + 2 * c + i % 2;
        if constexpr (kInt8) s[n][i] *= ring.scales(stage)[column];
        if (!scoring.plain) {
          float derivative;
          const float away = static_cast<float>(slots.position(slot + column) - limits[i / 2].position);
          s[n][i] = scoring.value(s[n][i], 0, derivative) + slope[i / 2] * away;
        }
        if (!full && !sees(p.mask, batch, limits[i / 2], slots, slot + column)) s[n][i] = kMinusInfinity;
      }
    float shrink[2];
    softmax.step(scoring.unit, s, shrink);
    if constexpr (kInt8)
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) s[n][i] *= ring.scales(stage)[kKeys + 8 * n + 2 * c + i % 2];
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) out[j][i] *= shrink[i / 2];
    uint32_t weights[kKeys / 16][4];
    as_operands<T>(weights, s);
#pragma unroll
    for (int m = 0; m < kKeys / 16; ++m)
#pragma unroll
      for (int i = 0; i < kWidth / 64; ++i) {
        uint32_t v[4][4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int row = 16 * m + 2 * c + j % 2 + j / 2 * 8;
          load8<T, kInt8>(v[j], ring.values(stage) + row * ring.kRowBytes, 64 * i + 8 * g);
        }
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const uint32_t half = j % 2 ? 0x7632 : 0x5410;
          multiply_add<T>(out[8 * i + j], weights[m], __byte_perm(v[0][j / 2], v[1][j / 2], half),
                          __byte_perm(v[2][j / 2], v[3][j / 2], half));
        }
      }
  }
  copy_async_wait<0>();
  __syncthreads();  // the rings become the place of the warps' results

  // Those are added up by all threads in the order of the warps.
  constexpr int kColumns = kWidth + 4;
  static_assert(kRingBytes >= kWarps * kRows * (kColumns + 2) * static_cast<int>(sizeof(float)));
  const int rows = min(sizes.rows - tile * kRows, kRows);
  float* const sums = reinterpret_cast<float*>(shared_bytes);  // [kWarps, kRows, kColumns]
  float2* const parts = reinterpret_cast<float2*>(sums + kWarps * kRows * kColumns);  // [kWarps, kRows]
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float total = warp_sum<4>(softmax.sum[r]);
    if (g + 8 * r >= rows) continue;
    const int row = warp * kRows + g + 8 * r;
    if (c == 0) parts[row] = make_float2(softmax.largest[r] * scoring.unit, total);
#pragma unroll
    for (int j = 0; j < kWidth / 8; j += 4) {
      float* const to = sums + row * kColumns + j / 8 * 64 + 16 * c + j % 8;
      const auto four = [&](int i) {
        return make_float4(out[j][i], out[j + 1][i], out[j + 2][i], out[j + 3][i]);
      };
      *reinterpret_cast<float4*>(to) = four(2 * r);
      *reinterpret_cast<float4*>(to + 8) = four(2 * r + 1);
    }
  }
  __syncthreads();
  float* const to = scratch + sizes.part(p, batch, key_head, tile, split);
  const int fours = p.value_width / 4;
  for (int i = threadIdx.x; i < rows * fours; i += 32 * kWarps) {
    const int row = i / fours, column = i % fours * 4;
    Partial all;
    float high = kMinusInfinity;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) high = fmaxf(high, parts[w * kRows + row].x);
    all.raise(high);
#pragma unroll
    for (int w = 0; w < kWarps; ++w)
      all.add(parts[w * kRows + row],
              *reinterpret_cast<const float4*>(sums + (w * kRows + row) * kColumns + column));
    if (sizes.splits == 1) {
      all.store<T>(p, batch, key_head, tile * kRows + row, column);
      continue;
    }
    *reinterpret_cast<float4*>(to + row * p.value_width + column) = all.sum;
    if (column == 0)
      reinterpret_cast<float2*>(to + kRows * p.value_width)[row] = make_float2(all.largest, all.total);
  }
}

// One block for each row of a key head; its warps share the splits, a lane has four columns.
template <class T>
__global__ void __launch_bounds__(32 * kCombineWarps)
    combine_kernel(const __grid_constant__ AttentionCuda p, Sizes sizes, const float* scratch) {
  __shared__ float4 sums[kCombineWarps][32];
  __shared__ float2 parts[kCombineWarps];
  const int row = blockIdx.x, key_head = blockIdx.y, batch = blockIdx.z, warp = threadIdx.x / 32,
            lane = threadIdx.x % 32, width = p.value_width;
  const float* const from = scratch + sizes.part(p, batch, key_head, row / kRows, 0);
  const bool there = 4 * lane < width;
  const int begin = sizes.splits * warp / kCombineWarps, end = sizes.splits * (warp + 1) / kCombineWarps;
  constexpr int kTogether = 8;  // whose loads overlap
  let_next_start();
  wait_for_last();
  Partial all;
  for (int first = begin; first < end; first += kTogether) {
    float2 part[kTogether];
    float4 sum[kTogether] = {};
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      part[i] = make_float2(kMinusInfinity, 0);
      if (first + i >= end) continue;
      const float* const at = from + (first + i) * sizes.partial;
      part[i] = reinterpret_cast<const float2*>(at + kRows * width)[row % kRows];
      if (there) sum[i] = *reinterpret_cast<const float4*>(at + row % kRows * width + 4 * lane);
    }
    float high = kMinusInfinity;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) high = fmaxf(high, part[i].x);
    all.raise(high);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) all.add(part[i], sum[i]);
  }
  sums[warp][lane] = all.sum;
  if (lane == 0) parts[warp] = make_float2(all.largest, all.total);
  __syncthreads();
  if (warp > 0 || !there) return;
  Partial whole;
#pragma unroll
  for (int w = 0; w < kCombineWarps; ++w) whole.raise(parts[w].x);
#pragma unroll
  for (int w = 0; w < kCombineWarps; ++w) whole.add(parts[w], sums[w][lane]);
  whole.store<T>(p, batch, key_head, row, 4 * lane);
}

template <class T, int kWidth, bool kInt8, int kWarps>
CudaStatus launch(const AttentionCuda& p, const Sizes& sizes, float* scratch, const AttentionDevice& device) {
  constexpr int kBytes = kWarps * Ring<kWidth, kInt8>::kBytes;
  const auto kernel = decode_kernel<T, kWidth, kInt8, kWarps>;
  if (const auto error = allow_shared(kernel, kBytes)) return status_of(error);
  const dim3 grid(sizes.row_tiles * sizes.splits, p.key_heads, p.batch);
  const auto failed =
      launch_early(kernel, grid, 32 * kWarps, kBytes, device.stream, device.capability, 1, p, sizes, scratch);
  if (failed || sizes.splits == 1) return failed;
  // As much shared memory as the other has, so that they can be on a multiprocessor together.
  if (const auto error = cudaFuncSetAttribute(
          combine_kernel<T>, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared))
    return status_of(error);
  return launch_early(combine_kernel<T>, dim3(sizes.rows, p.key_heads, p.batch), 32 * kCombineWarps, 0,
                      device.stream, device.capability, 1, p, sizes, scratch);
}

bool aligned(const AttentionRows& x, int bytes) {
  const auto fits = [&](int64_t stride) { return stride * bytes % 16 == 0; };
  return fits(x.batch) && fits(x.token) && fits(x.head) && reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

bool takes(const AttentionCuda& p) {
  const auto keys_fit = [&](const AttentionRows& x, int width) {
    if (width % 8 != 0) return false;
    return x.scale ? x.group == width && aligned(x, 1) : x.type == p.q.type && aligned(x, 2);
  };
  return p.q.type != CudaType::fp32 && p.out.type == p.q.type && p.scale > 0 && p.mask.lists == 1 &&
         aligned(p.q, 2) && keys_fit(p.k, p.key_width) && keys_fit(p.v, p.value_width) &&
         std::max(p.key_width, p.value_width) <= 128 && p.batch * p.queries > 0 &&
         p.queries * p.group() <= kMostRows && kFewWarps * ring_bytes(p) <= shared_limit();
}

}  // namespace

int64_t attention_decode_scratch(const AttentionCuda& p, const AttentionDevice& device) {
  if (!takes(p)) return 0;
  const Sizes s = sizes_of(p, device);
  return int64_t{p.batch} * p.key_heads * s.row_tiles * s.splits * s.partial;
}

CudaStatus attention_decode(const AttentionCuda& p, float* scratch, const AttentionDevice& device) {
  const Sizes sizes = sizes_of(p, device);
  const auto with_keys = [&]<class T, int kWidth>(T, std::integral_constant<int, kWidth>) {
    if (p.k.scale) return launch<T, kWidth, true, kFewWarps>(p, sizes, scratch, device);
    return sizes.warps == kManyWarps ? launch<T, kWidth, false, kManyWarps>(p, sizes, scratch, device)
                                     : launch<T, kWidth, false, kFewWarps>(p, sizes, scratch, device);
  };
  const auto with_width = [&]<class T>(T type) {
    return std::max(p.key_width, p.value_width) <= 64 ? with_keys(type, std::integral_constant<int, 64>())
                                                      : with_keys(type, std::integral_constant<int, 128>());
  };
  return p.q.type == CudaType::bf16 ? with_width(bf16{}) : with_width(fp16{});
}

}  // namespace weft::kernels
