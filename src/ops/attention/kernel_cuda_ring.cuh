// For decoding: which tiles of keys are seen, and keys and values on their way into a warp's own part of shared memory.
#pragma once

#include "ops/attention/kernel_cuda_mask.cuh"

namespace weft::kernels {

// The tiles of keys that the queries of a sequence see, in order, by number. Under a rule those of sinks, then a range.
struct KeyTiles {
  const TileRun* list = nullptr;
  int runs = 0, count = 0;
  int sinks = 0, sinks_full = 0, begin = 0, full = 0, full_end = 0;

  __device__ __forceinline__ KeyTiles(const AttentionMask& m, int batch) {
    if (m.rule) {
      sinks_full = row_run(m, 0, 0).end, sinks = row_run(m, 0, 1).end;
      begin = row_run(m, 0, 2).begin / 2, full = row_run(m, 0, 2).end, full_end = row_run(m, 0, 3).end;
      count = sinks + row_run(m, 0, 4).end - begin;
      return;
    }
    const int64_t index = int64_t{batch} * m.query_tiles;
    runs = m.row_counts[index], list = m.row_runs + index * m.row_most;
    for (int i = 0; i < runs; ++i) count += list[i].end - (list[i].begin >> 1);
  }
};

// A place among the parts of the tiles, kParts of each.
template <int kParts>
struct KeyCursor {
  const KeyTiles& tiles;
  int number, part = 0, run = 0, tile;
  TileRun here = {};  // of lists

  __device__ __forceinline__ KeyCursor(const KeyTiles& tiles, int number)
      : tiles(tiles), number(number), tile(number) {
    if (!tiles.list) {
      find();
      return;
    }
    for (int left = number; run < tiles.runs; ++run) {
      here = tiles.list[run], tile = (here.begin >> 1) + left;
      if (tile < here.end) return;
      left = tile - here.end;
    }
  }
  __device__ __forceinline__ bool full() const {
    if (tiles.list) return here.begin & 1;
    return number < tiles.sinks ? tile < tiles.sinks_full : tile >= tiles.full && tile < tiles.full_end;
  }
  __device__ __forceinline__ void next() {
    if (++part < kParts) return;
    part = 0, ++number, ++tile;
    if (!tiles.list)
      find();
    else if (tile >= here.end && ++run < tiles.runs)
      here = tiles.list[run], tile = here.begin >> 1;
  }

 private:
  __device__ __forceinline__ void find() {
    tile = number < tiles.sinks ? number : tiles.begin + number - tiles.sinks;
  }
};

// Two bytes at bits 0 and 16 of `x`, the rest zero, as a pair of T; exact.
template <class T>
__device__ __forceinline__ uint32_t widen(uint32_t x);
template <>
__device__ __forceinline__ uint32_t widen<fp16>(uint32_t x) {  // 1024 + (x + 128), less 1152
  const uint32_t y = (x ^ 0x00800080) | 0x64006400, less = 0x64806480;
  const __half2 z = __hsub2(reinterpret_cast<const __half2&>(y), reinterpret_cast<const __half2&>(less));
  return reinterpret_cast<const uint32_t&>(z);
}
template <>
__device__ __forceinline__ uint32_t
widen<bf16>(uint32_t x) {  // 128 + the low 7 bits, less 128 or, if negative, 256
  const uint32_t y = (x & 0x007f007f) | 0x43004300, less = (x & 0x00800080) | 0x43004300;
  const __nv_bfloat162 z =
      __hsub2(reinterpret_cast<const __nv_bfloat162&>(y), reinterpret_cast<const __nv_bfloat162&>(less));
  return reinterpret_cast<const uint32_t&>(z);
}

// 8 numbers from `column` on of a row in shared memory, as pairs of T.
template <class T, bool kInt8>
__device__ __forceinline__ void load8(uint32_t (&r)[4], const char* row, int column) {
  if constexpr (kInt8) {
    const uint2 x = *reinterpret_cast<const uint2*>(row + column);
    r[0] = widen<T>(__byte_perm(x.x, 0, 0x4140)), r[1] = widen<T>(__byte_perm(x.x, 0, 0x4342));
    r[2] = widen<T>(__byte_perm(x.y, 0, 0x4140)), r[3] = widen<T>(__byte_perm(x.y, 0, 0x4342));
  } else {
    const uint4 x = *reinterpret_cast<const uint4*>(row + 2 * column);
    r[0] = x.x, r[1] = x.y, r[2] = x.z, r[3] = x.w;
  }
}

// As copy_async16, of rows that are read whole: the second-level cache gets 128 bytes at a time.
__device__ __forceinline__ void copy_row16(void* to, const void* from, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void copy_async4(void* to, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(to)), "l"(from) : "memory");
}

// What a warp has under way: stages of kKeys keys, their values and, for int8, their scales. Rows are padded by 16 bytes
// against bank conflicts.
template <int kWidth, bool kInt8>
struct Ring {
  static constexpr int kKeys = kInt8 ? 32 : 16, kStages = kWidth > 64 ? 3 : 4;
  static constexpr int kElement = kInt8 ? 1 : 2, kPieces = kWidth * kElement / 16,
                       kRowBytes = kWidth * kElement + 16;
  static constexpr int kTileBytes = kKeys * kRowBytes, kStageBytes = 2 * kTileBytes + 2 * kKeys * 4;
  static constexpr int kBytes = kStages * kStageBytes;
  char* data;

  __device__ __forceinline__ char* keys(int stage) const { return data + stage % kStages * kStageBytes; }
  __device__ __forceinline__ char* values(int stage) const { return keys(stage) + kTileBytes; }
  __device__ __forceinline__ float* scales(int stage) const {  // of the keys, then of the values
    return reinterpret_cast<float*>(values(stage) + kTileBytes);
  }

  __device__ __forceinline__ void load(const AttentionCuda& p, int batch, int head, int slot,
                                       int stage) const {
    copy(keys(stage), p.k, batch, head, slot, p.keys, p.key_width);
    copy(values(stage), p.v, batch, head, slot, p.keys, p.value_width);
    if constexpr (kInt8) {
      static_assert(kKeys == 32);
      const int lane = threadIdx.x % 32, row = min(slot + lane, p.keys - 1);
      const auto scale = [&](float* to, const AttentionRows& x) {
        copy_async4(to + lane, x.scale + batch * x.scale_batch + row * x.scale_token + head * x.scale_head);
      };
      scale(scales(stage), p.k);
      scale(scales(stage) + kKeys, p.v);
    }
  }

 private:
  __device__ __forceinline__ void copy(char* to, const AttentionRows& x, int batch, int head, int slot,
                                       int end, int width) const {
    const char* base = static_cast<const char*>(x.data) + kElement * (batch * x.batch + head * x.head);
#pragma unroll
    for (int i = 0; i < kKeys * kPieces / 32; ++i) {
      const int piece = i * 32 + threadIdx.x % 32, row = piece / kPieces, column = piece % kPieces * 16;
      const bool valid = slot + row < end && column < width * kElement;
      copy_row16(to + row * kRowBytes + column,
                 valid ? base + (slot + row) * x.token * kElement + column : base, valid);
    }
  }
};

}  // namespace weft::kernels
