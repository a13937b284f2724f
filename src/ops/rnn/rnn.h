// Nonlinear recurrences: h feeds back through a block-diagonal matrix, one block for each head (`rnn`), or only
// to its own channel (`rnn` or `rnn_parallel`).
//   g_t = wx_t + R h_{t-1} + bias,   s_t = P(s_{t-1}, g_t)       P pointwise: the cell
// Hochreiter and Schmidhuber 1997 (LSTM); Cho et al. 2014 (GRU); heads and cell interface after Pöppel et al.
// 2024, arXiv:2412.07752 (FlashRNN); the parallel solver after Danieli et al. 2025, arXiv:2510.21450 (ParaRNN).
//
// B batch, T tokens, H heads, D width of a head, J gates, S states, P parameters. State 0 is h, the only one
// that feeds back through R. The first J_r gates have a recurrent part, the last J_x an input part; in most
// cells that is all of them.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "ops/rnn/cell_rows.h"

namespace weft::ops {

struct Rnn {
  std::string cell = "lstm";      // a registered cell
  at::Tensor wx;                  // [B, T, J_x, H, D] input part of the gates, any float type
  at::Tensor recurrent = {};      // [J_r, H, D, D] (gate, head, out, in); undefined when J_r = 0
  at::Tensor bias = {};           // [J, H, D]; undefined: none
  at::Tensor parameters = {};     // [P, H, D]; undefined when P = 0
  at::Tensor initial_state = {};  // [S, B, H, D] fp32 (fp64 for fp64); undefined: zeros
  at::Tensor starts = {};         // [B, T] bool, true where a document begins; undefined: none
};

struct RnnResult {
  at::Tensor h;      // [B, T, H, D] in the type of wx
  at::Tensor state;  // [S, B, H, D] after the last token
};

// Token after token. Cells, and those that were registered:
//   elman      J 1; states h
//   lstm       gates i, f, z, o; states h, c
//   gru        gates n_h, r, u, n_x: n = tanh(n_x + r n_h), h = u h + (1 - u) n. R has n_h, r, u, wx has r, u,
//              n_x, the bias all four: the form of torch and cuDNN, whose wx has the same order
//   slstm      gates i, f, z, o; states h, c, n, m, where the stabiliser m counts as a constant in
//              differentiation
//   para_gru   gates z, r, g, no R; parameters a_z, a_r, a_g, the weights of h
//   para_lstm  gates f, o, z, no R; states h, c; parameters a_f, a_o, a_z, the weights of h, and p_f, p_o, of c
// Differentiable in everything but `starts`. T may be 0.
// Error against fp64 relative to max|h|: fp32 1e-5 for T <= 256 and |R| <= 1, bf16 and fp16 2e-2.
// Work: 2 B T J_r H D^2 flops.
RnnResult rnn(const Rnn& in);

// What a cell is: its sizes, its pointwise step in ATen (the specification, differentiable), and the same
// step and its derivative on fp32 rows for the CPU kernel. Registered by name; users may add cells from
// plug-ins.
struct Cell {
  std::string name;
  int64_t gates = 0;   // J
  int64_t states = 0;  // S
  // gates [J, ...], states [S, ...], parameters [P, ...] or undefined -> new states [S, ...]
  at::Tensor (*reference)(const at::Tensor& gates, const at::Tensor& states,
                          const at::Tensor& parameters) = nullptr;
  void (*forward)(const CellStep& step) = nullptr;
  void (*backward)(const CellGradient& gradient) = nullptr;
  void (*linearize)(const CellStep& step) = nullptr;  // forward, and the Jacobian; for rnn_parallel
  int64_t recurrent_gates = -1;                       // J_r, the first ones; -1: all
  int64_t input_gates = -1;                           // J_x, the last ones; -1: all
  int64_t parameters = 0;                             // P
};
void register_cell(const Cell& cell);
const Cell& find_cell(const std::string& name);  // InputError lists the registered ones
std::vector<std::string> cell_names();

namespace reference {
RnnResult rnn(const Rnn& in);
}

}  // namespace weft::ops
