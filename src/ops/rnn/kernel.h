// CPU kernels of the nonlinear recurrences. All tensors contiguous fp32.
#pragma once

#include <cstdint>

#include "ops/simd/isa.h"

namespace weft::kernels {

// The pointwise step of a cell and its derivative, as in ops::Cell.
using CellForward = void (*)(int64_t n, float* const* gates, const float* const* states,
                             float* const* new_states);
using CellBackward = void (*)(int64_t n, const float* const* saved, const float* const* states,
                              const float* const* new_states, const float* const* d_new_states,
                              float* const* d_gates, float* const* d_states);

inline constexpr int64_t kMostRnnRows = 16;  // gates, and states, of a cell that the kernels take

struct RnnProblem {
  int64_t batch = 0, tokens = 0, gates = 0, heads = 0, width = 0, states = 0;
  int64_t rows = 1;                // sequences of a task; a task is one head and a block of sequences
  const float* wx = nullptr;       // [B, T, J, H, D]
  const float* matrix = nullptr;   // forward: [J, H, in, out]; backward: [J, H, out, in]
  const float* bias = nullptr;     // [J, H, D] or null
  const float* initial = nullptr;  // [S, B, H, D] or null
  const bool* starts = nullptr;    // [B, T] or null
  float* h = nullptr;              // [B, T, H, D]
  float* state = nullptr;          // [S, B, H, D]
  float* saved = nullptr;          // H B T (J + S) D floats: of each task [T][J + S][rows][D]; null: not kept
};

struct RnnGradient {
  RnnProblem forward;             // with saved; wx, bias and state are not read
  const float* dh = nullptr;      // [B, T, H, D]
  const float* dstate = nullptr;  // [S, B, H, D]
  float* dwx = nullptr;           // [B, T, J, H, D]
  float* dinitial = nullptr;      // [S, B, H, D]
  float* drecurrent = nullptr;    // [J, H, out, in]
};

inline int64_t rnn_tasks(const RnnProblem& p) { return p.heads * ((p.batch + p.rows - 1) / p.rows); }
void rnn_forward(simd::Isa isa, const RnnProblem& p, CellForward cell, int64_t begin, int64_t end);
void rnn_backward(simd::Isa isa, const RnnGradient& p, CellBackward cell, int64_t begin, int64_t end);
// After rnn_backward: task (gate, head) sums its matrix of drecurrent over all sequences and tokens.
void rnn_backward_matrix(simd::Isa isa, const RnnGradient& p, int64_t begin, int64_t end);

// The built-in cells.
void elman_forward(simd::Isa isa, int64_t n, float* const* gates, const float* const* states,
                   float* const* new_states);
void elman_backward(simd::Isa isa, int64_t n, const float* const* saved, const float* const* states,
                    const float* const* new_states, const float* const* d_new_states, float* const* d_gates,
                    float* const* d_states);
void lstm_forward(simd::Isa isa, int64_t n, float* const* gates, const float* const* states,
                  float* const* new_states);
void lstm_backward(simd::Isa isa, int64_t n, const float* const* saved, const float* const* states,
                   const float* const* new_states, const float* const* d_new_states, float* const* d_gates,
                   float* const* d_states);
void slstm_forward(simd::Isa isa, int64_t n, float* const* gates, const float* const* states,
                   float* const* new_states);
void slstm_backward(simd::Isa isa, int64_t n, const float* const* saved, const float* const* states,
                    const float* const* new_states, const float* const* d_new_states, float* const* d_gates,
                    float* const* d_states);

}  // namespace weft::kernels
