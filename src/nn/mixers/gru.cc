// GRU with one block of recurrent weights for each head; the reset gate acts behind the product with R, as in
// torch and cuDNN. Cho et al. 2014, arXiv:1406.1078; heads as in Pöppel et al. 2024, arXiv:2412.07752.
//   r, u, n = W x;  m, r', u' = R h;  biases for r, u, and for n and m apart
//   r = sigmoid(r + r');  u = sigmoid(u + u');  h = u h + (1 - u) tanh(n + r m);  y = W_out h
//
// H heads of width K. State: cells [B, 1, H, K] fp32, h. Rows of `in` r, u, n; of `recurrent` m, r, u; of `bias`
// m, r, u, n.
#include "nn/mixers/rnn_layer.h"

namespace weft {
namespace {

struct GruOptions {
  RnnSizes sizes;
  void fields(Fields& f) { sizes.fields(f); }
  static std::string cell(const Site&) { return "gru"; }
  static void initialize_bias(at::Tensor& bias) {
    bias.select(0, 2).fill_(1);  // update gate: remember at the start of training
  }
};
const Register<RnnMixer<GruOptions>> register_gru{
    "gru",
    "GRU with heads (Cho et al. 2014); as an LSTM with half of the state and three quarters of the weights"};

}  // namespace
}  // namespace weft
