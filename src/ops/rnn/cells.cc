// The registry of cells and the built-in ones.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <map>

#include "base/error.h"
#include "ops/kernel_choice.h"
#include "ops/rnn/kernel.h"
#include "ops/rnn/rnn.h"
#include "ops/simd/dispatch.h"

namespace weft::ops {
namespace {

using at::Tensor;

// h = tanh(g). Elman 1990.
Tensor elman(const Tensor& gates, const Tensor&, const Tensor&) { return at::tanh(gates); }

// Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000.
Tensor lstm(const Tensor& gates, const Tensor& states, const Tensor&) {
  const auto i = at::sigmoid(gates[0]), f = at::sigmoid(gates[1]), z = at::tanh(gates[2]),
             o = at::sigmoid(gates[3]);
  const auto c = f * states[1] + i * z;
  return at::stack({o * at::tanh(c), c});
}

// Cho et al. 2014, with the reset gate behind the product with R.
Tensor gru(const Tensor& gates, const Tensor& states, const Tensor&) {
  const auto n = at::tanh(gates[3] + at::sigmoid(gates[1]) * gates[0]);
  return at::lerp(n, states[0], at::sigmoid(gates[2])).unsqueeze(0);
}

// LSTM with an exponential input gate, a normaliser n and a stabiliser m that keeps all exponents at or below
// zero without changing h; Beck et al. 2024, arXiv:2405.04517 (xLSTM). n = 0 marks a fresh state.
Tensor slstm(const Tensor& gates, const Tensor& states, const Tensor&) {
  const auto &c = states[1], n = states[2];
  const auto kept = at::log_sigmoid(gates[1]) + states[3].detach();
  const auto m = at::where(n == 0, gates[0], at::maximum(gates[0], kept)).detach();  // h does not depend on m
  const auto i = at::exp(at::clamp_max(gates[0] - m, 0)), f = at::exp(at::clamp_max(kept - m, 0));
  const auto new_c = f * c + i * at::tanh(gates[2]);
  const auto new_n = at::clamp_min(f * n + i, 1);
  return at::stack({at::sigmoid(gates[3]) * new_c / new_n, new_c, new_n, m});
}

// Danieli et al. 2025, arXiv:2510.21450 (ParaRNN), as the next: a GRU whose matrices are diagonal.
Tensor para_gru(const Tensor& gates, const Tensor& states, const Tensor& a) {
  const auto& h = states[0];
  const auto z = at::sigmoid(gates[0] + a[0] * h), r = at::sigmoid(gates[1] + a[1] * h);
  return at::lerp(h, at::tanh(gates[2] + a[2] * r * h), z).unsqueeze(0);
}

// An LSTM with diagonal matrices, coupled input and forget gates and peepholes.
Tensor para_lstm(const Tensor& gates, const Tensor& states, const Tensor& a) {
  const auto &h = states[0], c = states[1];
  const auto f = at::sigmoid(gates[0] + a[0] * h + a[3] * c);
  const auto new_c = at::lerp(at::tanh(gates[2] + a[2] * h), c, f);
  const auto o = at::sigmoid(gates[1] + a[1] * h + a[4] * new_c);
  return at::stack({o * at::tanh(new_c), new_c});
}

// The kernel of a cell for the instruction set in use.
template <auto kernel>
void run(const CellStep& step) {
  kernel(isa_of(choose_kernel(at::kCPU, at::kFloat)), step);
}
template <auto kernel>
void differentiate(const CellGradient& gradient) {
  kernel(isa_of(choose_kernel(at::kCPU, at::kFloat)), gradient);
}

std::map<std::string, Cell> built_in() {
  using namespace kernels;
  std::map<std::string, Cell> cells;
  const auto add = [&](const Cell& cell) { cells[cell.name] = cell; };
  add({"elman", 1, 1, elman, run<elman_forward>, differentiate<elman_backward>, nullptr, 1, 1, 0});
  add({"lstm", 4, 2, lstm, run<lstm_forward>, differentiate<lstm_backward>, nullptr, 4, 4, 0});
  add({"gru", 4, 1, gru, run<gru_forward>, differentiate<gru_backward>, nullptr, 3, 3, 0});
  add({"slstm", 4, 4, slstm, run<slstm_forward>, differentiate<slstm_backward>, nullptr, 4, 4, 0});
  add({"para_gru", 3, 1, para_gru, run<para_gru_forward>, differentiate<para_gru_backward>,
       run<para_gru_linearize>, 0, 3, 3});
  add({"para_lstm", 3, 2, para_lstm, run<para_lstm_forward>, differentiate<para_lstm_backward>,
       run<para_lstm_linearize>, 0, 3, 5});
  return cells;
}

std::map<std::string, Cell>& registry() {
  static std::map<std::string, Cell> cells = built_in();
  return cells;
}

}  // namespace

void register_cell(const Cell& cell) {
  require(!cell.name.empty() && cell.gates >= 1 && cell.states >= 1 && cell.reference != nullptr,
          "register_cell: '{}' needs a name, at least one gate and state, and a reference", cell.name);
  Cell full = cell;
  if (full.recurrent_gates < 0) full.recurrent_gates = cell.gates;
  if (full.input_gates < 0) full.input_gates = cell.gates;
  require(
      std::max(full.recurrent_gates, full.input_gates) <= cell.gates &&
          full.recurrent_gates + full.input_gates >= cell.gates && full.input_gates >= 1,
      "register_cell: '{}' has {} gates, of which the first {} are recurrent and the last {} have inputs; "
      "each needs one of the two, and one an input",
      cell.name, cell.gates, full.recurrent_gates, full.input_gates);
  require(registry().emplace(cell.name, full).second, "register_cell: there is already a cell '{}'",
          cell.name);
}

const Cell& find_cell(const std::string& name) {
  const auto found = registry().find(name);
  require(found != registry().end(), "rnn: no cell '{}'; registered: {}", name,
          fmt::join(cell_names(), ", "));
  return found->second;
}

std::vector<std::string> cell_names() {
  std::vector<std::string> names;
  for (const auto& [name, cell] : registry()) names.push_back(name);
  return names;
}

}  // namespace weft::ops
