// CPU kernels of Newton's method for recurrences whose channels do not meet. All tensors contiguous fp32;
// E = H D channels.
#pragma once

#include <cstdint>

#include "ops/rnn/kernel.h"

namespace weft::kernels {

// A task is one sequence and a block of channels, numbered sequence first. It takes all iterations on a chunk
// of tokens while they are in the cache, then goes on to the next chunk.
inline constexpr int64_t kParallelChannels = 64, kParallelChunk = 1024;  // channels; channels x tokens
inline constexpr int64_t kMostParallelStates = 2;

struct RnnParallelProblem {
  int64_t batch = 0, tokens = 0, channels = 0, gates = 0, states = 0, parameters = 0;
  int64_t iterations = 0;
  float tolerance = 0;               // tasks with a larger residual are evaluated token by token
  const float* wx = nullptr;         // [B, T, J, E]
  const float* bias = nullptr;       // [J, E] or null
  const float* parameter = nullptr;  // [P, E]
  const float* initial = nullptr;    // [S, B, E] or null
  const bool* starts = nullptr;      // [B, T] or null
  float* trajectory = nullptr;       // [B, T, S, E] states behind each token
  float* state = nullptr;            // [S, B, E]
  float* residual = nullptr;         // one for each task, of Newton's last iterate
};

struct RnnParallelGradient {
  RnnParallelProblem forward;     // trajectory holds the result; state and residual are not touched
  const float* dh = nullptr;      // [B, T, E]
  const float* dstate = nullptr;  // [S, B, E]
  float* dwx = nullptr;           // [B, T, J, E]
  float* dparameter = nullptr;    // [B, P, E]
  float* dinitial = nullptr;      // [S, B, E]
};

inline int64_t rnn_parallel_blocks(int64_t channels) {
  return (channels + kParallelChannels - 1) / kParallelChannels;
}
void rnn_parallel_forward(simd::Isa isa, const RnnParallelProblem& p, CellForward step, CellForward linearize,
                          int64_t begin, int64_t end);
void rnn_parallel_backward(simd::Isa isa, const RnnParallelGradient& p, CellForward linearize,
                           CellBackward backward, int64_t begin, int64_t end);

}  // namespace weft::kernels
