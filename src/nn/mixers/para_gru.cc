// ParaGRU: a GRU whose recurrent matrices are diagonal, so that all tokens can be solved at once by Newton's
// method. Danieli et al. 2025, arXiv:2510.21450.
//   z = sigmoid(a_z h + u_z);  r = sigmoid(a_r h + u_r);  h = (1 - z) h + z tanh(a_g r h + u_g)
// Block, letters and state: para_layer.h, with S = 1 (h).
#include "nn/mixers/para_layer.h"

namespace weft {
namespace {

struct ParaGru {
  static constexpr const char* name = "para_gru";
};
const Register<ParaMixer<ParaGru>> register_para_gru{
    "para_gru",
    "GRU with diagonal recurrent matrices, parallel over tokens by Newton's method (ParaRNN); use it for a "
    "nonlinear state that trains on long sequences"};

}  // namespace
}  // namespace weft
