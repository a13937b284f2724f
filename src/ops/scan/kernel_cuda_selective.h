// CUDA kernels of selective_scan: pointers and sizes in elements; no torch. Everything is contiguous.
#pragma once

#include <cstdint>

#include "ops/cuda/types.h"

namespace weft::kernels {

constexpr int kCudaSelectiveChunk = 32;  // tokens between the states that the forward pass saves

constexpr int64_t kCudaSelectiveStates = 64;  // N at most

struct CudaSelectiveScan {
  int64_t batch = 0, tokens = 0, channels = 0, states = 0;
  CudaType type = CudaType::fp32;      // of u, delta, y and their gradients
  CudaType map_type = CudaType::fp32;  // of b and c
  const void* u = nullptr;             // [B, T, E]
  const void* delta = nullptr;         // [B, T, E]
  const float* a = nullptr;            // [E, N]
  const void* b = nullptr;             // [B, T, N]
  const void* c = nullptr;             // [B, T, N]
  const float* skip = nullptr;         // [E] or null
  const float* initial = nullptr;      // [B, E, N] or null
  const uint8_t* starts = nullptr;     // [B, T] or null
  void* y = nullptr;                   // [B, T, E]
  float* state = nullptr;              // [B, E, N], may be `initial` when T is 1
  float* saved = nullptr;              // [B, chunks, E, N] states before each chunk, or null
  float* segments = nullptr;           // `scratch` floats of the table
  int multiprocessors = 0;
};

// In forward: the inputs, and `saved` as the forward pass left it.
struct CudaSelectiveGradient {
  CudaSelectiveScan forward;
  const void* dy = nullptr;
  const float* dstate = nullptr;  // [B, E, N]
  void* du = nullptr;
  void* ddelta = nullptr;
  float* da = nullptr;        // [B segments, E, N], to be added up
  float* dskip = nullptr;     // [B segments, E], to be added up
  float* maps = nullptr;      // [2, blocks of channels, B, T, N] gradients of b and c, to be added up
  float* dinitial = nullptr;  // [B, E, N]
};

struct SelectiveScanCuda {
  CudaStatus (*forward)(const CudaSelectiveScan& p, void* stream);
  CudaStatus (*backward)(const CudaSelectiveGradient& g, void* stream);
  int64_t (*segments)(const CudaSelectiveScan& p);        // parts of a sequence, side by side in backward
  int64_t (*scratch)(const CudaSelectiveScan& p);         // floats, of forward and of backward
  int64_t (*channel_blocks)(const CudaSelectiveScan& p);  // in `maps`
  int64_t (*gradient_states)();  // the most of a channel whose backward pass the current device has room for
};

const SelectiveScanCuda& selective_scan_cuda();

}  // namespace weft::kernels
