// The registry of cells and the built-in ones: elman, lstm, slstm.
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

// h = tanh(g). Elman 1990.
at::Tensor elman(const at::Tensor& gates, const at::Tensor&) { return at::tanh(gates); }

// Gates i, f, z, o; states h, c. Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000.
at::Tensor lstm(const at::Tensor& gates, const at::Tensor& states) {
  const auto i = at::sigmoid(gates[0]), f = at::sigmoid(gates[1]), z = at::tanh(gates[2]),
             o = at::sigmoid(gates[3]);
  const auto c = f * states[1] + i * z;
  return at::stack({o * at::tanh(c), c});
}

// Gates i, f, z, o; states h, c, n, m. LSTM with an exponential input gate, a normaliser n and a stabiliser m
// that keeps all exponents at or below zero without changing h; Beck et al. 2024, arXiv:2405.04517 (xLSTM). n
// = 0 marks a fresh state.
at::Tensor slstm(const at::Tensor& gates, const at::Tensor& states) {
  const auto &c = states[1], n = states[2];
  const auto kept = at::log_sigmoid(gates[1]) + states[3].detach();
  const auto m = at::where(n == 0, gates[0], at::maximum(gates[0], kept)).detach();  // h does not depend on m
  const auto i = at::exp(at::clamp_max(gates[0] - m, 0)), f = at::exp(at::clamp_max(kept - m, 0));
  const auto new_c = f * c + i * at::tanh(gates[2]);
  const auto new_n = at::clamp_min(f * n + i, 1);
  return at::stack({at::sigmoid(gates[3]) * new_c / new_n, new_c, new_n, m});
}

// The kernel of a cell for the instruction set in use.
template <void (*kernel)(simd::Isa, int64_t, float* const*, const float* const*, float* const*)>
void forward(int64_t n, float* const* gates, const float* const* states, float* const* new_states) {
  kernel(isa_of(choose_kernel(at::kCPU, at::kFloat)), n, gates, states, new_states);
}

template <void (*kernel)(simd::Isa, int64_t, const float* const*, const float* const*, const float* const*,
                         const float* const*, float* const*, float* const*)>
void backward(int64_t n, const float* const* saved, const float* const* states,
              const float* const* new_states, const float* const* d_new_states, float* const* d_gates,
              float* const* d_states) {
  kernel(isa_of(choose_kernel(at::kCPU, at::kFloat)), n, saved, states, new_states, d_new_states, d_gates,
         d_states);
}

std::map<std::string, Cell>& registry() {
  static std::map<std::string, Cell> cells = [] {
    std::map<std::string, Cell> built_in;
    built_in["elman"] = {
        "elman", 1, 1, elman, forward<kernels::elman_forward>, backward<kernels::elman_backward>};
    built_in["lstm"] = {"lstm", 4, 2, lstm, forward<kernels::lstm_forward>, backward<kernels::lstm_backward>};
    built_in["slstm"] = {
        "slstm", 4, 4, slstm, forward<kernels::slstm_forward>, backward<kernels::slstm_backward>};
    return built_in;
  }();
  return cells;
}

}  // namespace

void register_cell(const Cell& cell) {
  require(!cell.name.empty() && cell.gates >= 1 && cell.states >= 1 && cell.reference != nullptr,
          "register_cell: '{}' needs a name, at least one gate and state, and a reference", cell.name);
  require(registry().emplace(cell.name, cell).second, "register_cell: there is already a cell '{}'",
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
