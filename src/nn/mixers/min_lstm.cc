// minLSTM: an LSTM whose gates and candidate do not read the state, with forget and input gate scaled to a sum
// of 1, so that h keeps its size whatever the length. Feng et al. 2024, arXiv:2410.01201.
//   h_t = f' h_{t-1} + i' candidate(v_t),   f' = f / (f + i), i' = i / (f + i), f = sigmoid(W_f u + b_f), i alike
// Layer, letters and state: min_rnn.h.
#include "nn/mixers/min_rnn.h"

namespace weft {
namespace {

struct MinLstm {
  static constexpr int64_t gates = 2;  // f, i
  static ScanGates open(const std::vector<at::Tensor>& g) {
    const auto odds = at::log_sigmoid(g[0]) - at::log_sigmoid(g[1]);  // log(f / i): finite where f + i is 0
    return {at::sigmoid(odds), at::sigmoid(-odds)};
  }
  static void initialize_bias(at::Tensor& bias) { bias[0].fill_(1); }  // remember at the start of training
};
const Register<MinRnn<MinLstm>> register_min_lstm{
    "min_lstm",
    "minLSTM: forget and input gate read the input only and sum to 1 (Feng et al. 2024); a gated scan with "
    "two gates"};

}  // namespace
}  // namespace weft
