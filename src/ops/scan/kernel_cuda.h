// CUDA kernels of the diagonal recurrences: pointers, sizes and strides in elements; no torch.
#pragma once

#include <cstdint>

#include "ops/cuda/types.h"

namespace weft::kernels {

enum class CudaScanKind : int32_t { real, complex, matrix };

// h_t = a_t h_{t-1} + b_t. A channel has `states` numbers: 1 real, 2 for complex ones (re, im, neighbours) and for pairs
// (in rows of E), and coefficients 1, 2, 4. Complex numbers and matrices are fp32.
struct CudaScan {
  int64_t batch = 0, tokens = 0, channels = 0;
  CudaScanKind kind = CudaScanKind::real;
  CudaRows a;  // batch and token stride 0: the same at every token
  CudaRows b;
  const float* initial = nullptr;           // [B, states, E] or null
  const uint8_t* starts = nullptr;          // [B, T] or null
  void* h = nullptr;                        // [B, T, states, E] in the type of b
  float* state = nullptr;                   // [B, states, E], may be `initial` when T is 1
  float* segments = nullptr;                // `scratch` floats of the table
  int multiprocessors = 0, capability = 0;  // 90 for 9.0
};

// In forward: a, initial, starts, h (as it was written), sizes, the type of b.
struct CudaScanGradient {
  CudaScan forward;
  const void* dh = nullptr;       // [B, T, states, E] in the type of b
  const float* dstate = nullptr;  // [B, states, E]
  void* db = nullptr;             // as dh
  void* da = nullptr;             // as a, in its type, contiguous; or null
  float* da_sums = nullptr;       // for a constant a: [segments B, coefficients, E], to be added up; or null
  float* dinitial = nullptr;      // [B, states, E] or null
};

struct ScanCuda {
  CudaStatus (*forward)(const CudaScan& p, void* stream);
  CudaStatus (*backward)(const CudaScanGradient& g, void* stream);
  int64_t (*segments)(const CudaScan& p);  // parts of a sequence that run side by side
  int64_t (*scratch)(const CudaScan& p);   // floats, of forward and of backward
};

const ScanCuda& scan_cuda();

}  // namespace weft::kernels
