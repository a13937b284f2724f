// Few queries against many keys: the heads of a group are rows of one tile of 16, the keys are split over blocks and
// warps, and partial results are added up in the order of the splits. Every warp has its own keys under way. It reads 8
// numbers of a row at a time: the numbers of a head and the columns of the result are permuted so that these are
// operands of tensor core products, and 8-bit ones are widened only in registers.
#include <algorithm>

#include "ops/attention/kernel_cuda_ring.cuh"
#include "ops/attention/kernel_cuda_tile.cuh"

namespace weft::kernels {
namespace {

constexpr int kRows = 16;
constexpr int kMostRows = 64;  // of a key head, from which on a tile of 128 rows pays
constexpr int kCombineThreads = 128;

// Of a block: they need shared memory for what is under way, and 8-bit keys come 32 at a time.
constexpr int kFewWarps = 4, kManyWarps = 8;
int ring_bytes(const AttentionCuda& p) {
  const bool narrow = std::max(p.key_width, p.value_width) <= 64;
  return p.k.scale ? (narrow ? Ring<64, true>::kBytes : Ring<128, true>::kBytes)
                   : (narrow ? Ring<64, false>::kBytes : Ring<128, false>::kBytes);
}
int warps_of(const AttentionCuda& p) {
  return !p.k.scale && kManyWarps * ring_bytes(p) <= shared_limit() ? kManyWarps : kFewWarps;
}

struct Sizes {
  int rows, row_tiles, splits;
  int64_t partial;  // floats of a partial result: of each row V sums, the largest exponent and the sum
};

Sizes sizes_of(const AttentionCuda& p, const AttentionDevice& device) {
  Sizes s;
  s.rows = p.queries * p.group();
  s.row_tiles = (s.rows + kRows - 1) / kRows;
  const int64_t blocks = int64_t{p.batch} * p.key_heads * s.row_tiles;
  const int blocks_together = kManyWarps / warps_of(p) * device.multiprocessors;
  s.splits = static_cast<int>(std::clamp<int64_t>(blocks_together / std::max<int64_t>(blocks, 1), 1,
                                                  std::max(mask_tiles(p.keys), 1)));
  s.partial = kRows * (p.value_width + 2);
  return s;
}

// Of a kernel that runs right after another: it may start before that one has ended, and waits for its results.
__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
__device__ __forceinline__ void wait_for_last() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <class T, int kWidth, bool kInt8, int kWarps>
__global__ void __launch_bounds__(32 * kWarps, kManyWarps / kWarps)
    decode_kernel(const __grid_constant__ AttentionCuda p, Sizes sizes, float* scratch) {
  using WarpRing = Ring<kWidth, kInt8>;
  constexpr int kThreads = 32 * kWarps;
  constexpr int kRingBytes = kWarps * WarpRing::kBytes;
  extern __shared__ __align__(16) char shared_bytes[];
  const int split = blockIdx.x % sizes.splits, tile = blockIdx.x / sizes.splits, key_head = blockIdx.y,
            batch = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int g = lane / 4, c = lane % 4;
  const WarpRing ring{shared_bytes + warp * WarpRing::kBytes};
  constexpr int kKeys = WarpRing::kKeys, kSteps = kMaskTile / kWarps / kKeys;
  Walk<kSteps> walk(p.mask, true, batch, 0, 0, 1);
  const int tiles = walk.tiles_left(), begin = static_cast<int>(int64_t{tiles} * split / sizes.splits),
            steps = (static_cast<int>(int64_t{tiles} * (split + 1) / sizes.splits) - begin) * kSteps;
  walk.skip(begin);
  const auto slot_of = [&](const Walk<kSteps>& at) {
    return at.at * kMaskTile + (warp * kSteps + at.part) * kKeys;
  };
  Walk<kSteps> ahead = walk;
  for (int i = 0; i < WarpRing::kStages - 1; ++i) {
    if (i < steps) ring.load(p, batch, key_head, slot_of(ahead), i), ahead.next();
    copy_async_commit();
  }

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

  for (int stage = 0; stage < steps; ++stage, walk.next()) {
    copy_async_wait<WarpRing::kStages - 2>();
    __syncwarp();
    const int next = stage + WarpRing::kStages - 1;
    if (next < steps) ring.load(p, batch, key_head, slot_of(ahead), next), ahead.next();
    copy_async_commit();
    const int slot = slot_of(walk);
    const bool full = walk.full();
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
  constexpr int kColumns = kWidth + 1;
  static_assert(kRingBytes >= kWarps * kRows * (kColumns + 2) * static_cast<int>(sizeof(float)));
  float* const sums = reinterpret_cast<float*>(shared_bytes);  // [kWarps, kRows, kColumns]
  float* const largest = sums + kWarps * kRows * kColumns;     // [kWarps, kRows]
  float* const totals = largest + kWarps * kRows;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const float total = warp_sum<4>(softmax.sum[r]);
    const int row = warp * kRows + g + 8 * r;
    if (c == 0) largest[row] = softmax.largest[r] * scoring.unit, totals[row] = total;
#pragma unroll
    for (int j = 0; j < kWidth / 8; ++j) {
      const int column = j / 8 * 64 + 16 * c + j % 8;
      sums[row * kColumns + column] = out[j][2 * r];
      sums[row * kColumns + column + 8] = out[j][2 * r + 1];
    }
  }
  __syncthreads();
  let_next_start();
  float* to = scratch +
              (((int64_t{batch} * p.key_heads + key_head) * sizes.row_tiles + tile) * sizes.splits + split) *
                  sizes.partial;
  for (int i = threadIdx.x; i < kRows * (p.value_width + 1); i += kThreads) {
    const int row = i / (p.value_width + 1), column = i % (p.value_width + 1);
    if (tile * kRows + row >= sizes.rows) break;
    float high = kMinusInfinity, sum = 0;
    for (int w = 0; w < kWarps; ++w) high = fmaxf(high, largest[w * kRows + row]);
    for (int w = 0; w < kWarps; ++w) {
      const float factor = high == kMinusInfinity ? 0 : fast_exp2(largest[w * kRows + row] - high);
      sum += factor *
             (column < p.value_width ? sums[(w * kRows + row) * kColumns + column] : totals[w * kRows + row]);
    }
    float* row_to = to + row * (p.value_width + 2);
    row_to[column] = sum;
    if (column == p.value_width) row_to[column + 1] = high;
  }
}

// Two numbers of each split, in whole 16 bytes, as which they are read.
size_t combine_bytes(int splits) { return (2 * splits + 3) / 4 * sizeof(float4); }

// One block for each row of a key head, a thread for each column.
template <class T>
__global__ void __launch_bounds__(kCombineThreads)
    combine_kernel(const __grid_constant__ AttentionCuda p, Sizes sizes, const float* scratch) {
  extern __shared__ __align__(16) float factors[];  // of the splits, then their sums
  const int row = blockIdx.x, key_head = blockIdx.y, batch = blockIdx.z, lane = threadIdx.x % 32,
            width = p.value_width, splits = sizes.splits;
  const float* const from =
      scratch +
      ((int64_t{batch} * p.key_heads + key_head) * sizes.row_tiles + row / kRows) * splits * sizes.partial +
      row % kRows * (width + 2);
  float* const totals = factors + splits;
  wait_for_last();
  for (int i = threadIdx.x; i < splits; i += kCombineThreads) {
    totals[i] = from[i * sizes.partial + width];
    factors[i] = from[i * sizes.partial + width + 1];
  }
  __syncthreads();
  float high = kMinusInfinity;
  for (int i = lane; i < splits; i += 32) high = fmaxf(high, factors[i]);
  for (int step = 16; step > 0; step /= 2) high = fmaxf(high, __shfl_xor_sync(0xffffffff, high, step));
  __syncthreads();
  for (int i = threadIdx.x; i < splits; i += kCombineThreads)
    factors[i] = high == kMinusInfinity ? 0 : fast_exp2(factors[i] - high);
  __syncthreads();
  float total = 0;
  for (int i = lane; i < splits; i += 32) total += factors[i] * totals[i];
  total = warp_sum(total);
  const int64_t at =
      (int64_t{batch} * p.queries + row / p.group()) * p.heads + key_head * p.group() + row % p.group();
  const float inverse = total == 0 ? 0 : 1 / total;
  for (int column = threadIdx.x; column < width; column += kCombineThreads) {
    float sum = 0;
#pragma unroll 8
    for (int i = 0; i < splits; ++i) sum += factors[i] * from[i * sizes.partial + column];
    static_cast<T*>(p.out.data)[at * width + column] = from_float<T>(sum * inverse);
  }
  if (threadIdx.x == 0) p.lse[at] = total == 0 ? kMinusInfinity : high * kLn2 + logf(total);
}

template <class T, int kWidth, bool kInt8, int kWarps>
CudaStatus launch(const AttentionCuda& p, float* scratch, const AttentionDevice& device) {
  const Sizes sizes = sizes_of(p, device);
  const auto stream = static_cast<cudaStream_t>(device.stream);
  const dim3 grid(sizes.row_tiles * sizes.splits, p.key_heads, p.batch);
  constexpr int kBytes = kWarps * Ring<kWidth, kInt8>::kBytes;
  const auto kernel = decode_kernel<T, kWidth, kInt8, kWarps>;
  if (const auto error = allow_shared(kernel, kBytes)) return status_of(error);
  kernel<<<grid, 32 * kWarps, kBytes, stream>>>(p, sizes, scratch);
  if (const auto failed = last_status()) return failed;
  cudaLaunchAttribute early;
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  const cudaLaunchConfig_t config{dim3(sizes.rows, p.key_heads, p.batch),
                                  kCombineThreads,
                                  combine_bytes(sizes.splits),
                                  stream,
                                  &early,
                                  device.capability == 90};
  return status_of(
      cudaLaunchKernelEx(&config, combine_kernel<T>, p, sizes, static_cast<const float*>(scratch)));
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
         p.queries * p.group() <= kMostRows && warps_of(p) * ring_bytes(p) <= shared_limit();
}

}  // namespace

int64_t attention_decode_scratch(const AttentionCuda& p, const AttentionDevice& device) {
  if (!takes(p)) return 0;
  const Sizes s = sizes_of(p, device);
  return int64_t{p.batch} * p.key_heads * s.row_tiles * s.splits * s.partial;
}

CudaStatus attention_decode(const AttentionCuda& p, float* scratch, const AttentionDevice& device) {
  const auto with_keys = [&]<class T, int kWidth>(T, std::integral_constant<int, kWidth>) {
    if (p.k.scale) return launch<T, kWidth, true, kFewWarps>(p, scratch, device);
    return warps_of(p) == kManyWarps ? launch<T, kWidth, false, kManyWarps>(p, scratch, device)
                                     : launch<T, kWidth, false, kFewWarps>(p, scratch, device);
  };
  const auto with_width = [&]<class T>(T type) {
    return std::max(p.key_width, p.value_width) <= 64 ? with_keys(type, std::integral_constant<int, 64>())
                                                      : with_keys(type, std::integral_constant<int, 128>());
  };
  return p.q.type == CudaType::bf16 ? with_width(bf16{}) : with_width(fp16{});
}

}  // namespace weft::kernels
