// Included first by every CPU kernel file, before Highway. The file is then compiled three times, once for
// each instruction set, into the namespaces N_SCALAR, N_AVX2 and N_AVX3:
//
//   #undef HWY_TARGET_INCLUDE
//   #define HWY_TARGET_INCLUDE "ops/conv/kernel_cpu.cc"
//   #include "ops/simd/targets.h"   // this file; the blank line keeps clang-format from sorting it behind
//   Highway
//
//   #include "hwy/foreach_target.h"
//   #include "hwy/highway.h"
//   HWY_BEFORE_NAMESPACE();
//   namespace weft::kernels { namespace HWY_NAMESPACE {
//   void conv_forward(const ConvProblem& p, int64_t begin, int64_t end) { ... }
//   }}
//   HWY_AFTER_NAMESPACE();
//   #if HWY_ONCE
//   namespace weft::kernels { WEFT_SIMD_DISPATCH(conv_forward, (const ConvProblem& p, int64_t begin, int64_t
//   end),
//                                                (p, begin, end)) }
//   #endif
//
// Only Highway's headers are used, nothing of it is linked: the choice is ours (WEFT_KERNEL).
#pragma once

#ifdef HIGHWAY_HWY_BASE_H_
#error "ops/simd/targets.h must come before Highway's headers"
#endif
#define HWY_COMPILE_ALL_ATTAINABLE
#define HWY_BROKEN_EMU128 1  // g++ 12.2 miscompiles EMU128: scalar means HWY_SCALAR, vectors of one lane
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)

#include "ops/simd/isa.h"

// Defines `void name(simd::Isa isa, <params>)` that calls the version for `isa`.
#define WEFT_SIMD_UNPACK(...) __VA_ARGS__
#define WEFT_SIMD_DISPATCH(name, params, args)                \
  void name(::weft::simd::Isa isa, WEFT_SIMD_UNPACK params) { \
    switch (isa) {                                            \
      case ::weft::simd::Isa::avx512:                         \
        return N_AVX3::name args;                             \
      case ::weft::simd::Isa::avx2:                           \
        return N_AVX2::name args;                             \
      case ::weft::simd::Isa::scalar:                         \
        return N_SCALAR::name args;                           \
    }                                                         \
  }
