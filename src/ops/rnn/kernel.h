// CPU kernels of the nonlinear recurrences. All tensors contiguous fp32.
#pragma once

#include <cstdint>

#include "ops/rnn/cell_rows.h"
#include "ops/simd/isa.h"

namespace weft::kernels {

using CellForward = void (*)(const ops::CellStep&);  // forward or linearize of ops::Cell
using CellBackward = void (*)(const ops::CellGradient&);

inline constexpr int64_t kMostRnnRows = 16;  // gates, states and parameters of a cell that the kernels take

// A matrix is packed in panels of this many columns: panel after panel, its rows one behind the other, so that
// a product reads memory in order. Columns that are missing in the last panel are zero.
inline constexpr int64_t kRnnPanel = 32;
inline int64_t rnn_panels(int64_t columns) { return (columns + kRnnPanel - 1) / kRnnPanel; }

// A task is a block of sequences of one head, and a block of the head's columns. Columns of h meet in
// `exchange`: tasks with fewer columns than the head must all have done a token before one begins the next.
struct RnnProblem {
  int64_t batch = 0, tokens = 0, heads = 0, width = 0;
  int64_t gates = 0, recurrent_gates = 0, input_gates = 0, states = 0, parameters = 0;
  int64_t rows = 1;                  // sequences of a task
  int64_t columns = 0;               // of a task: all, or a multiple of kRnnPanel
  int64_t slots = 2;                 // tokens whose steps are kept: 2, or T + 1 for the backward pass
  const float* wx = nullptr;         // [B, T, J_x, H, D]
  const float* recurrent = nullptr;  // [J_r, H, out, in]
  const float* packed = nullptr;     // from rnn_pack; null: forward packs what it needs as it goes
  const float* bias = nullptr;       // [J, H, D] or null
  const float* parameter = nullptr;  // [P, H, D]
  const float* initial = nullptr;    // [S, B, H, D] or null
  const bool* starts = nullptr;      // [B, T] or null
  float* h = nullptr;                // [B, T, H, D]
  float* state = nullptr;            // [S, B, H, D]
  float* steps = nullptr;            // slots (J + S) B H D floats: of each task [slots][J + S][rows][columns]
  float* work = nullptr;             // rnn_work() B H D floats
  float* exchange = nullptr;         // forward [2][H][B][D] h, backward [2][H][B][J_r D] gradients of gates
};

struct RnnGradient {
  RnnProblem forward;             // with slots T + 1; wx, bias and state are not read
  const float* dh = nullptr;      // [B, T, H, D]
  const float* dstate = nullptr;  // [S, B, H, D]
  float* dgates = nullptr;        // [B, T, J, H, D]
  float* dparameter = nullptr;    // [B, P, H, D]
  float* dinitial = nullptr;      // [S, B, H, D]
};

inline int64_t rnn_tasks(const RnnProblem& p) {
  return p.heads * ((p.batch + p.rows - 1) / p.rows) * ((p.width + p.columns - 1) / p.columns);
}
inline int64_t rnn_work(const RnnProblem& p) { return 3 * p.states + 2 * p.parameters + p.gates; }

// `packed` for the forward pass [J_r][H][panels][in][kRnnPanel] and for the backward pass
// [H][panels][J_r out][kRnnPanel]. Task (gate, head, panel), and (head, panel).
void rnn_pack_forward(simd::Isa isa, const RnnProblem& p, float* packed, int64_t begin, int64_t end);
void rnn_pack_backward(simd::Isa isa, const RnnProblem& p, float* packed, int64_t begin, int64_t end);

// Tokens [first, last) of tasks [begin, end). Token -1 sets up: forward begins with it, backward, which goes
// down from last - 1, ends with it.
void rnn_forward(simd::Isa isa, const RnnProblem& p, CellForward cell, int64_t first, int64_t last,
                 int64_t begin, int64_t end);
void rnn_backward(simd::Isa isa, const RnnGradient& p, CellBackward cell, int64_t first, int64_t last,
                  int64_t begin, int64_t end);

// The gradient of R, after rnn_backward, as one product over all sequences and tokens in blocks of
// kRnnTokens. `before` holds h before each token: [H][blocks][panels][kRnnTokens][kRnnPanel].
inline constexpr int64_t kRnnTokens = 128, kRnnOutputs = 64;
struct RnnMatrixGradient {
  const RnnGradient* gradient = nullptr;
  float* before = nullptr;
  float* drecurrent = nullptr;  // [J_r, H, out, in]
};
inline int64_t rnn_token_blocks(const RnnProblem& p) {
  return (p.batch * p.tokens + kRnnTokens - 1) / kRnnTokens;
}
inline int64_t rnn_output_blocks(const RnnProblem& p) { return (p.width + kRnnOutputs - 1) / kRnnOutputs; }
// Task (head, token block) writes `before`, then task (gate, head, output block) a part of drecurrent.
void rnn_pack_before(simd::Isa isa, const RnnMatrixGradient& p, int64_t begin, int64_t end);
void rnn_backward_matrix(simd::Isa isa, const RnnMatrixGradient& p, int64_t begin, int64_t end);

// The built-in cells.
void elman_forward(simd::Isa isa, const ops::CellStep& step);
void elman_backward(simd::Isa isa, const ops::CellGradient& gradient);
void lstm_forward(simd::Isa isa, const ops::CellStep& step);
void lstm_backward(simd::Isa isa, const ops::CellGradient& gradient);
void gru_forward(simd::Isa isa, const ops::CellStep& step);
void gru_backward(simd::Isa isa, const ops::CellGradient& gradient);
void slstm_forward(simd::Isa isa, const ops::CellStep& step);
void slstm_backward(simd::Isa isa, const ops::CellGradient& gradient);
void para_gru_forward(simd::Isa isa, const ops::CellStep& step);
void para_gru_linearize(simd::Isa isa, const ops::CellStep& step);
void para_gru_backward(simd::Isa isa, const ops::CellGradient& gradient);
void para_lstm_forward(simd::Isa isa, const ops::CellStep& step);
void para_lstm_linearize(simd::Isa isa, const ops::CellStep& step);
void para_lstm_backward(simd::Isa isa, const ops::CellGradient& gradient);

}  // namespace weft::kernels
