// Any registered cell between two projections, also those of plug-ins (ops::register_cell).
//   s_t = cell(s_{t-1}, W x_t + R h_{t-1} + b);  y = W_out h
//
// H heads of width K. State: cells [B, S, H, K] fp32, h first. All biases begin at 0.
#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/text.h"
#include "nn/mixers/rnn_layer.h"

namespace weft {
namespace {

struct CellOptions {
  std::string name = "lstm";
  RnnSizes sizes;
  void fields(Fields& f) {
    f("cell", name, "a registered cell: elman, gru, lstm, slstm, para_gru, para_lstm, or one of a plug-in");
    sizes.fields(f);
  }
  std::string cell(const Site& site) const {
    const auto known = ops::cell_names();
    require(std::find(known.begin(), known.end(), name) != known.end(), "{}: no cell '{}'; registered: {}",
            site.where, name, join(known));
    return name;
  }
  static void initialize_bias(at::Tensor&) {}
};
const Register<RnnMixer<CellOptions>> register_rnn{
    "rnn", "any registered cell between two projections; use it to try a cell of a plug-in"};

}  // namespace
}  // namespace weft
