// ParaLSTM: an LSTM with diagonal recurrent matrices, coupled input and forget gates and peepholes, so that all
// tokens can be solved at once by Newton's method. Danieli et al. 2025, arXiv:2510.21450.
//   f = sigmoid(a_f h + p_f c + u_f);  c = f c + (1 - f) tanh(a_z h + u_z)
//   o = sigmoid(a_o h + p_o c + u_o);  h = o tanh(c)
// Block, letters and state: para_layer.h, with S = 2 (h, c).
#include "nn/mixers/para_layer.h"

namespace weft {
namespace {

struct ParaLstm {
  static constexpr const char* name = "para_lstm";
};
const Register<ParaMixer<ParaLstm>> register_para_lstm{
    "para_lstm",
    "LSTM with diagonal recurrent matrices and peepholes, parallel over tokens by Newton's method (ParaRNN); "
    "tracks states that para_gru loses"};

}  // namespace
}  // namespace weft
