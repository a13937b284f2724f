// CUDA kernels of Newton's method for recurrences whose channels do not meet. Tensors contiguous; E = H D channels.
#pragma once

#include <cstdint>

#include "ops/rnn/kernel_cuda.h"

namespace weft::kernels {

inline constexpr int64_t kRnnParallelChannels = 32;  // of a CTA
inline int64_t rnn_parallel_cuda_blocks(int64_t channels) {
  return (channels + kRnnParallelChannels - 1) / kRnnParallelChannels;
}

struct RnnParallelCuda {
  RnnCell cell = RnnCell::para_gru;
  CudaType type = CudaType::fp32;  // of wx, h, dh, dwx
  int64_t batch = 0, tokens = 0, channels = 0;
  int64_t iterations = 0;
  float tolerance = 0;               // CTAs with a larger residual evaluate their channels token by token
  const void* wx = nullptr;          // [B, T, J, E]
  const float* bias = nullptr;       // [J, E] or null
  const float* parameter = nullptr;  // [P, E]
  const float* initial = nullptr;    // [S, B, E] or null
  const bool* starts = nullptr;      // [B, T] or null
  void* h = nullptr;                 // [B, T, E]
  float* trajectory = nullptr;       // [B, T, S, E] states behind each token, or null
  float* state = nullptr;            // [S, B, E]
  float* residual = nullptr;         // [B, blocks] of Newton's last iterate
  float* carried = nullptr;          // [B, blocks, iterations + 1, S, 32] scratch
};

struct RnnParallelCudaGradient {
  RnnParallelCuda forward;        // with trajectory; h, state, residual and carried are not touched
  const void* dh = nullptr;       // [B, T, E]
  const float* dstate = nullptr;  // [S, B, E]
  void* dwx = nullptr;            // [B, T, J, E]
  float* dparameter = nullptr;    // [B, P, E]
  float* dinitial = nullptr;      // [S, B, E]
};

CudaStatus rnn_parallel_forward_cuda(const RnnParallelCuda& p, void* stream);
CudaStatus rnn_parallel_backward_cuda(const RnnParallelCudaGradient& p, void* stream);

struct RnnParallelCudaKernels {
  CudaStatus (*forward)(const RnnParallelCuda& p, void* stream);
  CudaStatus (*backward)(const RnnParallelCudaGradient& p, void* stream);
};
const RnnParallelCudaKernels& rnn_parallel_cuda_kernels();

}  // namespace weft::kernels
