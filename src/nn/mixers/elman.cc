// Elman's network: the state is a squashed linear map of input and state. Elman 1990, "Finding structure in
// time"; heads as in Pöppel et al. 2024, arXiv:2412.07752.
//   h = tanh(W x + R h + b);  y = W_out h
//
// H heads of width K. State: cells [B, 1, H, K] fp32, h.
#include "nn/mixers/rnn_layer.h"

namespace weft {
namespace {

struct ElmanOptions {
  RnnSizes sizes;
  void fields(Fields& f) { sizes.fields(f); }
  static std::string cell(const Site&) { return "elman"; }
  static void initialize_bias(at::Tensor&) {}
};
const Register<RnnMixer<ElmanOptions>> register_elman{
    "elman",
    "h = tanh(W x + R h) with heads (Elman 1990); the smallest nonlinear recurrence, for comparison"};

}  // namespace
}  // namespace weft
