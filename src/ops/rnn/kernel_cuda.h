// CUDA kernels of the nonlinear recurrences. Tensors contiguous; B T H D J S P as in rnn.h.
#pragma once

#include <cstdint>

#include "ops/cuda/types.h"

namespace weft::kernels {

enum class RnnCell : int32_t { elman, lstm, gru, slstm, para_gru, para_lstm };

struct RnnCuda {
  RnnCell cell = RnnCell::lstm;
  CudaType type = CudaType::fp32;  // of wx, recurrent, h, dh, dgates
  int64_t batch = 0, tokens = 0, heads = 0, width = 0;
  bool keep = false;                 // a backward pass may follow: states and gates of all tokens are written
  const void* wx = nullptr;          // [B, T, J_x, H, D]
  const void* recurrent = nullptr;   // forward [J_r, H, out, in], backward [J_r, H, in, out]
  const float* bias = nullptr;       // [J, H, D] or null
  const float* parameter = nullptr;  // [P, H, D]
  const float* initial = nullptr;    // [S, B, H, D] or null
  const bool* starts = nullptr;      // [B, T] or null
  void* h = nullptr;                 // [B, T, H, D]
  float* state = nullptr;            // [S, B, H, D]
  float* states = nullptr;           // [T, S, B, H, D], without keep [2, S, B, H, D]
  void* gates = nullptr;             // [T, J, B, H, D] fp32 as the cell left them, with keep
};

struct RnnCudaGradient {
  RnnCuda forward;                // wx, bias and state are not read
  const void* dh = nullptr;       // [B, T, H, D]
  const float* dstate = nullptr;  // [S, B, H, D]
  void* dgates = nullptr;         // [B, T, J, H, D]
  float* carried = nullptr;       // [S, B, H, D] scratch
  float* dparameter = nullptr;    // [B, P, H, D]
  float* dinitial = nullptr;      // [S, B, H, D]
};

// Any width and type, fp32 arithmetic. With R one launch a token.
CudaStatus rnn_forward_any(const RnnCuda& p, void* stream);
CudaStatus rnn_backward_any(const RnnCudaGradient& p, void* stream);

// Cells with R in bf16 or fp16, D a multiple of 8 up to kMostFusedWidth: one launch, a CTA for each head and 2, 4 or 8
// sequences. h and dgates are rounded before they meet R. Saved with keep: states without h, and gates in `type`, in the
// order of threads, which depends on the multiprocessors: of rnn_fused_places, 4 (S - 1) and 4 J each.
inline constexpr int64_t kMostFusedWidth = 128;
inline int64_t rnn_fused_places(int64_t batch, int64_t tokens, int64_t heads, int64_t width) {
  return tokens * heads * (width <= 64 ? 32 : 64) * ((batch + 1) / 2);
}
CudaStatus rnn_forward_fused(const RnnCuda& p, void* stream);
CudaStatus rnn_backward_fused(const RnnCudaGradient& p, void* stream);

// The same for D a multiple of 8 up to kMostWideWidth, by clusters of CTAs: only on sm_90. Saved: states
// [B, T, S - 1, H, D] without h, and gates [B, T, J, H, D] in `type`.
inline constexpr int64_t kMostWideWidth = 768;
CudaStatus rnn_forward_wide(const RnnCuda& p, void* stream);
CudaStatus rnn_backward_wide(const RnnCudaGradient& p, void* stream);

// h before every token, in its type [B, T, H, D]: what R met. Reads h, initial and starts.
CudaStatus rnn_h_before(const RnnCuda& p, void* before, void* stream);

struct RnnCudaKernels {
  CudaStatus (*forward_any)(const RnnCuda& p, void* stream);
  CudaStatus (*backward_any)(const RnnCudaGradient& p, void* stream);
  CudaStatus (*forward_fused)(const RnnCuda& p, void* stream);
  CudaStatus (*backward_fused)(const RnnCudaGradient& p, void* stream);
  CudaStatus (*forward_wide)(const RnnCuda& p, void* stream);
  CudaStatus (*backward_wide)(const RnnCudaGradient& p, void* stream);
  CudaStatus (*h_before)(const RnnCuda& p, void* before, void* stream);
};
const RnnCudaKernels& rnn_cuda_kernels();

}  // namespace weft::kernels
