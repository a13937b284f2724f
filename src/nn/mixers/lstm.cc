// LSTM with one block of recurrent weights for each head. Hochreiter and Schmidhuber 1997; heads as in Pöppel
// et al. 2024, arXiv:2412.07752.
//   i, f, z, o = W x + R h + b;  c = sigmoid(f) c + sigmoid(i) tanh(z);  h = sigmoid(o) tanh(c);  y = W_out h
//
// H heads of width K. State: cells [B, 2, H, K] fp32, h then c.
#include "nn/mixers/rnn_layer.h"

namespace weft {
namespace {

struct LstmOptions {
  RnnSizes sizes;
  void fields(Fields& f) { sizes.fields(f); }
  static std::string cell(const Site&) { return "lstm"; }
  static void initialize_bias(at::Tensor& bias) {
    bias.select(0, 1).fill_(1);  // forget gate: remember at the start of training
  }
};
const Register<RnnMixer<LstmOptions>> register_lstm{
    "lstm",
    "LSTM with heads (FlashRNN); use it where a state must be tracked exactly, as in parity or counting, and "
    "tokens may be taken one after the other"};

}  // namespace
}  // namespace weft
