#include "nn/mixers/rnn_layer.h"

#include <fmt/format.h>

#include "base/error.h"
#include "ops/norm/norm.h"

namespace weft {

at::Tensor block_linear(const at::Tensor& x, const at::Tensor& weight) {
  const int64_t batch = x.size(0), tokens = x.size(1), blocks = weight.size(0);
  const auto rows = x.reshape({batch * tokens, blocks, weight.size(2)}).transpose(0, 1);  // [G, B T, I]
  const auto y = at::matmul(rows, weight.to(x.scalar_type()).mT());                       // [G, B T, O]
  return y.transpose(0, 1).reshape({batch, tokens, blocks, weight.size(1)});
}

at::Tensor head_norm(const at::Tensor& h, const at::Tensor& weight, double eps) {
  if (!weight.defined()) return h.flatten(2);
  const auto normal = ops::layer_norm(h, {}, {}, eps).flatten(2);
  return normal * weight.to(h.scalar_type());
}

at::Tensor run_cell(ops::Rnn in, State& state, const Context& context) {
  in.initial_state = state.at("cells").transpose(0, 1);  // [S, B, H, K]
  in.starts = context.starts;
  const auto result = ops::rnn(in);
  state.set("cells", result.state.transpose(0, 1));
  return result.h;
}

void no_affine_summary(const std::string& mixer) {
  throw Unsupported(fmt::format(
      "{} has no affine summary: its state is a nonlinear function of the state before; run spans "
      "in order",
      mixer));
}

}  // namespace weft
