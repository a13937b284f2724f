// Hopper's own instructions (sm_90a): barriers that count bytes, the tensor copy engine, products of a warpgroup.
#pragma once

#include <cuda.h>

#include <type_traits>

#include "ops/cuda/device.cuh"

namespace weft::kernels {

// A tile in shared memory is a stack of panels: 64 columns of 16-bit numbers, a row 128 bytes, so that the 16 bytes of
// columns [8 c, 8 c + 8) of row r lie at `panel_offset(r, c)`. Panels begin at multiples of 1024 bytes.
constexpr int kPanelColumns = 64, kPanelRowBytes = 128;
__device__ __forceinline__ int panel_offset(int row, int chunk) {
  return row * kPanelRowBytes + ((chunk ^ (row & 7)) << 4);
}

inline CudaStatus encode_tensor_map(CUtensorMap* map, const CudaRows& x, int rank, const cuuint64_t* sizes,
                                    const cuuint64_t* strides, const cuuint32_t* box) {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  if (found != cudaDriverEntryPointSuccess) return "the driver has no tensor maps";
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  const auto type = x.type == CudaType::fp32   ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                    : x.type == CudaType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                               : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function)(
      map, type, static_cast<cuuint32_t>(rank), const_cast<void*>(x.data), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? nullptr : "the driver refused a tensor map";
}
// Columns of a panel and bytes of a stride, where there is one.
inline cuuint32_t panel_columns(const CudaRows& x) { return x.type == CudaType::fp32 ? 32 : kPanelColumns; }
inline cuuint64_t stride_bytes(const CudaRows& x, int64_t extent, int64_t stride) {
  return static_cast<cuuint64_t>(extent > 1 ? (x.type == CudaType::fp32 ? 4 : 2) * stride : 16);
}

// The [B, T, H, width] tensor `x` as the copy engine sees it: boxes are panels of `rows` tokens (of fp32 32 columns, also
// 128 bytes); what lies outside reads as zero and is not written. Rows and strides must be multiples of 16 bytes.
inline CudaStatus make_tensor_map(CUtensorMap* map, const CudaRows& x, int64_t width, int64_t heads,
                                  int64_t tokens, int64_t batch, int rows) {
  const cuuint64_t sizes[4] = {static_cast<cuuint64_t>(width), static_cast<cuuint64_t>(heads),
                               static_cast<cuuint64_t>(tokens), static_cast<cuuint64_t>(batch)};
  const cuuint64_t strides[3] = {stride_bytes(x, heads, x.head), stride_bytes(x, tokens, x.token),
                                 stride_bytes(x, batch, x.batch)};
  const cuuint32_t box[4] = {panel_columns(x), 1, static_cast<cuuint32_t>(rows), 1};
  return encode_tensor_map(map, x, 4, sizes, strides, box);
}
// The same where the width is that of whole panels: boxes are `panels` of them, one behind the other.
inline CudaStatus make_panels_map(CUtensorMap* map, const CudaRows& x, int64_t width, int64_t heads,
                                  int64_t tokens, int64_t batch, int rows, int panels) {
  const cuuint32_t columns = panel_columns(x);
  const cuuint64_t sizes[5] = {columns, static_cast<cuuint64_t>(tokens),
                               static_cast<cuuint64_t>(width) / columns, static_cast<cuuint64_t>(heads),
                               static_cast<cuuint64_t>(batch)};
  const cuuint64_t strides[4] = {stride_bytes(x, tokens, x.token), kPanelRowBytes,
                                 stride_bytes(x, heads, x.head), stride_bytes(x, batch, x.batch)};
  const cuuint32_t box[5] = {columns, static_cast<cuuint32_t>(rows), static_cast<cuuint32_t>(panels), 1, 1};
  return encode_tensor_map(map, x, 5, sizes, strides, box);
}

// Barriers in shared memory, 8 bytes each. A phase ends when all arrivals are in and all expected bytes have landed.
__device__ __forceinline__ void barrier_init(uint64_t* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals));
}
// After the barriers are set up, before others or the copy engine use them.
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void barrier_expect(uint64_t* barrier, int bytes) {
  asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra "
      "again;\n}\n" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// One panel between device and shared memory, first element (column, head, token, batch).
__device__ __forceinline__ void copy_panel(void* to, const CUtensorMap* map, uint64_t* barrier, int column,
                                           int head, int token, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(head), "r"(token), "r"(batch)
      : "memory");
}
// The panels of a box of make_panels_map.
__device__ __forceinline__ void copy_panels(void* to, const CUtensorMap* map, uint64_t* barrier, int panel,
                                            int head, int token, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, "
      "%6, %7}], [%2];" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(0), "r"(token), "r"(panel), "r"(head), "r"(batch)
      : "memory");
}
// Into the second-level cache.
__device__ __forceinline__ void prefetch_panel(const CUtensorMap* map, int column, int head, int token,
                                               int batch) {
  asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global [%0, {%1, %2, %3, %4}];" ::"l"(map), "r"(column),
               "r"(head), "r"(token), "r"(batch)
               : "memory");
}
__device__ __forceinline__ void store_panel(const CUtensorMap* map, const void* from, int column, int head,
                                            int token, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::"l"(map),
      "r"(shared_address(from)), "r"(column), "r"(head), "r"(token), "r"(batch)
      : "memory");
}
// Plain bytes from device to shared memory, both at multiples of 16.
__device__ __forceinline__ void copy_bytes(void* to, const void* from, int bytes, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
          shared_address(to)),
      "l"(from), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
// Brings them into the second-level cache.
__device__ __forceinline__ void prefetch_bytes(const void* from, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until this thread's stores have read what they store.
__device__ __forceinline__ void store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}
// Orders this thread's writes to shared memory before what the copy engine and warpgroup products read of it next.
__device__ __forceinline__ void async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// A barrier of `threads` threads, by number (0 is that of the whole block).
__device__ __forceinline__ void named_barrier(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
// Counts as having come to the barrier, without waiting.
__device__ __forceinline__ void named_barrier_arrive(int number, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Counts this thread as one of the `threads` of that barrier without waiting.
__device__ __forceinline__ void named_arrive(int number, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// Registers of a thread, for all of a warpgroup: gives back those above `kCount`, or waits for as many.
template <int kCount>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

// Four 8x8 matrices to shared memory, addresses and fragments as load_matrices has them.
__device__ __forceinline__ void store_matrices(void* row, uint32_t r0, uint32_t r1, uint32_t r2,
                                               uint32_t r3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
               "r"(r0), "r"(r1), "r"(r2), "r"(r3)
               : "memory");
}

// The same of the transposed matrices.
__device__ __forceinline__ void store_matrices_transposed(void* row, uint32_t r0, uint32_t r1, uint32_t r2,
                                                          uint32_t r3) {
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(shared_address(row)),
      "r"(r0), "r"(r1), "r"(r2), "r"(r3)
      : "memory");
}

// Where a warpgroup product finds an operand of 64 x 16 numbers in a panel. Deep: the 16 lie along the rows of the
// panel, from column 16 i on. Wide: they are panel rows, from 16 i on, and the 64 its columns.
__device__ __forceinline__ uint32_t panel_operand(const void* panel) {
  return 1 << 16 | (shared_address(panel) & 0x3FFFF) >> 4;
}
constexpr uint32_t kDeepStep = 32 >> 4, kWideStep = 16 * kPanelRowBytes >> 4;

__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void products_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most `kPending` committed groups of products are under way.
template <int kPending>
__device__ __forceinline__ void products_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}
// Keeps the compiler from moving uses of `x` over this point, between products and their wait.
template <int kSize>
__device__ __forceinline__ void pin(float (&x)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

#define WEFT_ACCUMULATORS                                                                                 \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
  "%22, %23, "                                                                                            \
  "%24, %25, %26, %27, %28, %29, %30, %31}"
#define WEFT_ACCUMULATE(c)                                                                                  \
  "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]), "+f"(c[4]), "+f"(c[5]), "+f"(c[6]), "+f"(c[7]),           \
      "+f"(c[8]), "+f"(c[9]), "+f"(c[10]), "+f"(c[11]), "+f"(c[12]), "+f"(c[13]), "+f"(c[14]), "+f"(c[15]), \
      "+f"(c[16]), "+f"(c[17]), "+f"(c[18]), "+f"(c[19]), "+f"(c[20]), "+f"(c[21]), "+f"(c[22]),            \
      "+f"(c[23]), "+f"(c[24]), "+f"(c[25]), "+f"(c[26]), "+f"(c[27]), "+f"(c[28]), "+f"(c[29]),            \
      "+f"(c[30]), "+f"(c[31])

// The upper half of an operand: groups of 8 rows are 1024 bytes apart, rows of 128 bytes are swizzled.
#define WEFT_OPERAND(name, low) ".reg .b64 " name "; mov.b64 " name ", {" low ", 0x40000040}; "
#define WEFT_PRODUCT(type) "wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type " " WEFT_ACCUMULATORS

// c[64x64] (+)= a[64x16] b[16x64] by a warpgroup, both in panels, a deep; b wide (its rows are the 16) or deep. Of c,
// warp w holds rows 16 w to 16 w + 15; c[4 j ..] of a lane is what multiply_add has of columns 8 j to 8 j + 7.
template <class T, bool kWideB>
__device__ __forceinline__ void multiply_panels(float (&c)[32], uint32_t a, uint32_t b, bool add) {
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile("{" WEFT_OPERAND("a", "%32")
                     WEFT_OPERAND("b", "%33") ".reg .pred p; setp.ne.b32 p, %34, 0; " WEFT_PRODUCT(
                         "bf16") ", a, b, p, 1, 1, 0, %35;}"
                 : WEFT_ACCUMULATE(c)
                 : "r"(a), "r"(b), "r"(static_cast<int>(add)), "n"(kWideB ? 1 : 0));
  else
    asm volatile("{" WEFT_OPERAND("a", "%32")
                     WEFT_OPERAND("b", "%33") ".reg .pred p; setp.ne.b32 p, %34, 0; " WEFT_PRODUCT(
                         "f16") ", a, b, p, 1, 1, 0, %35;}"
                 : WEFT_ACCUMULATE(c)
                 : "r"(a), "r"(b), "r"(static_cast<int>(add)), "n"(kWideB ? 1 : 0));
}
// c += a b with a in registers, as multiply_add takes it, rows 16 w to 16 w + 15 in warp w.
template <class T, bool kWideB>
__device__ __forceinline__ void multiply_rows(float (&c)[32], const uint32_t (&a)[4], uint32_t b) {
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile("{" WEFT_OPERAND("b", "%36") WEFT_PRODUCT("bf16") ", {%32, %33, %34, %35}, b, 1, 1, 1, %37;}"
                 : WEFT_ACCUMULATE(c)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(kWideB ? 1 : 0));
  else
    asm volatile("{" WEFT_OPERAND("b", "%36") WEFT_PRODUCT("f16") ", {%32, %33, %34, %35}, b, 1, 1, 1, %37;}"
                 : WEFT_ACCUMULATE(c)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "n"(kWideB ? 1 : 0));
}

// The same for an operand b in any layout, its whole descriptor given.
template <class T, bool kWideB>
__device__ __forceinline__ void multiply_rows(float (&c)[32], const uint32_t (&a)[4], uint64_t b) {
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile(WEFT_PRODUCT("bf16") ", {%32, %33, %34, %35}, %36, 1, 1, 1, %37;"
                 : WEFT_ACCUMULATE(c)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kWideB ? 1 : 0));
  else
    asm volatile(WEFT_PRODUCT("f16") ", {%32, %33, %34, %35}, %36, 1, 1, 1, %37;"
                 : WEFT_ACCUMULATE(c)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kWideB ? 1 : 0));
}

// c[64x16] += a b, in two accumulators of 8 columns.
template <class T, bool kWideB>
__device__ __forceinline__ void multiply_rows(float (&c0)[4], float (&c1)[4], const uint32_t (&a)[4],
                                              uint64_t b) {
#define WEFT_NARROW_PRODUCT(type)                                                                           \
  asm volatile("wgmma.mma_async.sync.aligned.m64n16k16.f32." type "." type                                  \
               " {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, %12, 1, 1, 1, %13;"                  \
               : "+f"(c0[0]), "+f"(c0[1]), "+f"(c0[2]), "+f"(c0[3]), "+f"(c1[0]), "+f"(c1[1]), "+f"(c1[2]), \
                 "+f"(c1[3])                                                                                \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kWideB ? 1 : 0))
  if constexpr (std::is_same_v<T, bf16>)
    WEFT_NARROW_PRODUCT("bf16");
  else
    WEFT_NARROW_PRODUCT("f16");
#undef WEFT_NARROW_PRODUCT
}
// The same with both operands in shared memory, in any layout. Wide a: its 16 lie along the rows of the tile.
template <class T, bool kWideA, bool kWideB>
__device__ __forceinline__ void multiply_shared(float (&c)[32], uint64_t a, uint64_t b, bool add = true) {
  if constexpr (std::is_same_v<T, bf16>)
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %34, 0; " WEFT_PRODUCT("bf16") ", %32, %33, p, 1, 1, %35, %36;}"
        : WEFT_ACCUMULATE(c)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kWideA ? 1 : 0), "n"(kWideB ? 1 : 0));
  else
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %34, 0; " WEFT_PRODUCT("f16") ", %32, %33, p, 1, 1, %35, %36;}"
        : WEFT_ACCUMULATE(c)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kWideA ? 1 : 0), "n"(kWideB ? 1 : 0));
}

#undef WEFT_OPERAND
#undef WEFT_PRODUCT
#undef WEFT_ACCUMULATORS
#undef WEFT_ACCUMULATE

}  // namespace weft::kernels
