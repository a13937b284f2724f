// minGRU: a GRU whose gate and candidate do not read the state. Feng et al. 2024, arXiv:2410.01201.
//   h_t = (1 - z_t) h_{t-1} + z_t candidate(v_t),   z = sigmoid(W_z u + b_z)
// Layer, letters and state: min_rnn.h.
#include "nn/mixers/min_rnn.h"

namespace weft {
namespace {

struct MinGru {
  static constexpr int64_t gates = 1;
  static ScanGates open(const std::vector<at::Tensor>& g) {
    return {at::sigmoid(-g[0]), at::sigmoid(g[0])};  // 1 - z without cancellation
  }
  static void initialize_bias(at::Tensor&) {}
};
const Register<MinRnn<MinGru>> register_min_gru{
    "min_gru",
    "minGRU: a GRU whose gates read the input only (Feng et al. 2024); the smallest gated scan, a baseline"};

}  // namespace
}  // namespace weft
