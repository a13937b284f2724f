// Products of a warpgroup 128 columns wide, for attention.
#pragma once

#include "ops/attention/kernel_cuda_tile.cuh"
#include "ops/cuda/hopper.cuh"

namespace weft::kernels {

// panel_operand for operands b that are wide over several panels of `panel_bytes`.
__device__ __forceinline__ uint32_t wide_operand(const void* panels, int panel_bytes) {
  return static_cast<uint32_t>(panel_bytes >> 4) << 16 | (shared_address(panels) & 0x3FFFF) >> 4;
}

// The upper half of an operand, as hopper.cuh has it.
#define WEFT_OPERAND(name, low) ".reg .b64 " name "; mov.b64 " name ", {" low ", 0x40000040}; "
#define WEFT_ACCUMULATORS                                                                            \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, " \
  "%21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, "  \
  "%40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, "  \
  "%59, %60, %61, %62, %63}"
#define WEFT_ACCUMULATE(c)                                                                                 \
  "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]), \
      "+f"(c[1][3]), "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]),            \
      "+f"(c[3][1]), "+f"(c[3][2]), "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]),            \
      "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]), "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]),            \
      "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]), "+f"(c[7][1]), "+f"(c[7][2]),            \
      "+f"(c[7][3]), "+f"(c[8][0]), "+f"(c[8][1]), "+f"(c[8][2]), "+f"(c[8][3]), "+f"(c[9][0]),            \
      "+f"(c[9][1]), "+f"(c[9][2]), "+f"(c[9][3]), "+f"(c[10][0]), "+f"(c[10][1]), "+f"(c[10][2]),         \
      "+f"(c[10][3]), "+f"(c[11][0]), "+f"(c[11][1]), "+f"(c[11][2]), "+f"(c[11][3]), "+f"(c[12][0]),      \
      "+f"(c[12][1]), "+f"(c[12][2]), "+f"(c[12][3]), "+f"(c[13][0]), "+f"(c[13][1]), "+f"(c[13][2]),      \
      "+f"(c[13][3]), "+f"(c[14][0]), "+f"(c[14][1]), "+f"(c[14][2]), "+f"(c[14][3]), "+f"(c[15][0]),      \
      "+f"(c[15][1]), "+f"(c[15][2]), "+f"(c[15][3])
#define WEFT_PRODUCT(type) "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " " WEFT_ACCUMULATORS

// c[64x128] (+)= a[64x16] b[16x128], both in panels and deep. Layout of c as in kernel_cuda_tile.cuh.
template <class T>
__device__ __forceinline__ void multiply_panels(float (&c)[16][4], uint32_t a, uint32_t b, bool add) {
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile(
        "{" WEFT_OPERAND("a", "%64") WEFT_OPERAND(
            "b", "%65") ".reg .pred p; setp.ne.b32 p, %66, 0; " WEFT_PRODUCT("bf16") ", a, b, p, 1, 1, 0, 0;}"
        : WEFT_ACCUMULATE(c)
        : "r"(a), "r"(b), "r"(static_cast<int>(add)));
  else
    asm volatile(
        "{" WEFT_OPERAND("a", "%64") WEFT_OPERAND(
            "b", "%65") ".reg .pred p; setp.ne.b32 p, %66, 0; " WEFT_PRODUCT("f16") ", a, b, p, 1, 1, 0, 0;}"
        : WEFT_ACCUMULATE(c)
        : "r"(a), "r"(b), "r"(static_cast<int>(add)));
}
// The same 64 columns wide.
template <class T>
__device__ __forceinline__ void multiply_panels(float (&c)[8][4], uint32_t a, uint32_t b, bool add) {
  multiply_panels<T, false>(reinterpret_cast<float(&)[32]>(c), a, b, add);
}

// c += a b with a in registers and b wide.
template <class T>
__device__ __forceinline__ void multiply_rows(float (&c)[16][4], const uint32_t (&a)[4], uint32_t b) {
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile("{" WEFT_OPERAND("b", "%68") WEFT_PRODUCT("bf16") ", {%64, %65, %66, %67}, b, 1, 1, 1, 1;}"
                 : WEFT_ACCUMULATE(c)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b));
  else
    asm volatile("{" WEFT_OPERAND("b", "%68") WEFT_PRODUCT("f16") ", {%64, %65, %66, %67}, b, 1, 1, 1, 1;}"
                 : WEFT_ACCUMULATE(c)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b));
}
template <class T>
__device__ __forceinline__ void multiply_rows(float (&c)[8][4], const uint32_t (&a)[4], uint32_t b) {
  multiply_rows<T, true>(reinterpret_cast<float(&)[32]>(c), a, b);
}

#undef WEFT_OPERAND
#undef WEFT_PRODUCT
#undef WEFT_ACCUMULATORS
#undef WEFT_ACCUMULATE

// c = a b' for rows [row, row + 64) of a and all rows of b; not yet committed.
template <class T, int kWidth, int kA, int kB>
__device__ __forceinline__ void start_scores(float (&c)[kB / 8][4], const Tile<kA, kWidth>& a, int row,
                                             const Tile<kB, kWidth>& b) {
#pragma unroll
  for (int k = 0; k < kWidth; k += 16) {
    const int panel = k / 64, step = k % 64 / 16;
    multiply_panels<T>(c, panel_operand(a.data + panel * a.kPanelBytes + row * 128) + step * kDeepStep,
                       panel_operand(b.data + panel * b.kPanelBytes) + step * kDeepStep, k > 0);
  }
}

// c += a b, a in registers.
template <class T, int kWidth, int kB>
__device__ __forceinline__ void start_sums(float (&c)[kWidth / 8][4], const uint32_t (&a)[kB / 16][4],
                                           const Tile<kB, kWidth>& b) {
  constexpr int kColumns = kWidth > 128 ? 128 : kWidth;  // of an instruction
#pragma unroll
  for (int column = 0; column < kWidth; column += kColumns) {
    const uint32_t operand = wide_operand(b.data + column / 64 * b.kPanelBytes, b.kPanelBytes);
    auto& part = reinterpret_cast<float(&)[kColumns / 8][4]>(c[column / 8]);
#pragma unroll
    for (int k = 0; k < kB / 16; ++k) multiply_rows<T>(part, a[k], operand + k * kWideStep);
  }
}

// Keeps the compiler from moving uses of `x` over this point.
template <int kTiles>
__device__ __forceinline__ void pin(float (&x)[kTiles][4]) {
  pin(reinterpret_cast<float(&)[4 * kTiles]>(x));
}

// x, but the compiler does not know it: what depends on it is computed where it is used and not kept in registers.
__device__ __forceinline__ int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// c, times factor, into rows [row, row + 16) of a tile.
template <class T, int kRows, int kWidth>
__device__ __forceinline__ void write_rows(const Tile<kRows, kWidth>& to, int row,
                                           const float (&c)[kWidth / 8][4], const float (&factor)[2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < kWidth / 8; ++j)
#pragma unroll
    for (int r = 0; r < 2; ++r)
      *reinterpret_cast<uint32_t*>(to.at(row + lane / 4 + 8 * r, 8 * j) + lane % 4 * 4) =
          pack<T>(c[j][2 * r] * factor[r], c[j][2 * r + 1] * factor[r]);
}

// All panels of a tile whose rows begin with `token`.
template <int kRows, int kWidth>
__device__ __forceinline__ void copy_tile(const Tile<kRows, kWidth>& to, const CUtensorMap& map,
                                          uint64_t* barrier, int head, int token, int batch) {
#pragma unroll
  for (int c = 0; c < kWidth; c += 64)
    copy_panel(to.data + c / 64 * to.kPanelBytes, &map, barrier, c, head, token, batch);
}

// Where dynamic shared memory has its first multiple of 1024 bytes.
__device__ __forceinline__ char* aligned_memory(char* memory) {
  return memory + (1024 - shared_address(memory) % 1024) % 1024;
}

}  // namespace weft::kernels
