// Nonlinear recurrences with a block-diagonal recurrent matrix, one block for each head.
//   g_t = wx_t + R h_{t-1} + bias,   s_t = P(s_{t-1}, g_t)       P pointwise: the cell
// Hochreiter and Schmidhuber 1997 (LSTM); heads and cell interface after Pöppel et al. 2024, arXiv:2412.07752
// (FlashRNN).
//
// B batch, T tokens, H heads, D width of a head, J gates, S states. State 0 is h, the only one that feeds
// back.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace weft::ops {

struct Rnn {
  std::string cell = "lstm";      // a registered cell
  at::Tensor wx;                  // [B, T, J, H, D] input part of the gates, any float type
  at::Tensor recurrent;           // [J, H, D, D] (gate, head, out, in)
  at::Tensor bias = {};           // [J, H, D]; undefined: none
  at::Tensor initial_state = {};  // [S, B, H, D] fp32 (fp64 for fp64); undefined: zeros
  at::Tensor starts = {};         // [B, T] bool, true where a document begins; undefined: none
};

struct RnnResult {
  at::Tensor h;      // [B, T, H, D] in the type of wx
  at::Tensor state;  // [S, B, H, D] after the last token
};

// Cells: elman (J 1, states h), lstm (gates i, f, z, o; states h, c), slstm (gates i, f, z, o; states h, c,
// n, m, where the stabiliser m counts as a constant in differentiation), and those that were registered.
// Differentiable in everything but `starts`. T may be 0.
// Error against fp64 relative to max|h|: fp32 1e-5 for T <= 256 and |R| <= 1, bf16 and fp16 2e-2.
// Work: 2 B T J H D^2 flops.
RnnResult rnn(const Rnn& in);

// What a cell is: its sizes, its pointwise step in ATen (the specification, differentiable), and the same
// step and its derivative on fp32 rows for the CPU kernel. Registered by name; users may add cells from
// plug-ins.
struct Cell {
  std::string name;
  int64_t gates = 0;   // J
  int64_t states = 0;  // S
  // gates [J, ...], states [S, ...] -> new states [S, ...]
  at::Tensor (*reference)(const at::Tensor& gates, const at::Tensor& states) = nullptr;
  // Pointwise over n contiguous values. gates[j] and states[s] point to rows; forward overwrites gates with
  // what backward wants saved and writes new_states.
  void (*forward)(int64_t n, float* const* gates, const float* const* states,
                  float* const* new_states) = nullptr;
  // saved = what forward left in gates. d_new_states comes in; d_gates and d_states go out.
  void (*backward)(int64_t n, const float* const* saved, const float* const* states,
                   const float* const* new_states, const float* const* d_new_states, float* const* d_gates,
                   float* const* d_states) = nullptr;
};
void register_cell(const Cell& cell);
const Cell& find_cell(const std::string& name);  // InputError lists the registered ones
std::vector<std::string> cell_names();

namespace reference {
RnnResult rnn(const Rnn& in);
}

}  // namespace weft::ops
