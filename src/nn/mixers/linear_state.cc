#include "nn/mixers/linear_state.h"

#include "nn/mixers/step_size.h"

namespace weft {

at::Tensor attend(ops::LinearAttention problem, State& state) {
  problem.initial_state = state.at("S");
  auto result = ops::linear_attention(problem);
  state.set("S", result.state);
  return result.y;
}

at::Tensor attend_step(ops::LinearAttention problem, State& state) {
  problem.initial_state = state.writable("S");
  return ops::linear_attention_step(problem).y;
}

AffineMap attend_summary(const ops::LinearAttention& problem) {
  const auto span = ops::linear_attention_summary(problem);
  return {span.factor, span.offset, span.matrix};
}

at::Tensor matrix_state(int64_t batch, int64_t heads, int64_t key_width, int64_t value_width,
                        const at::TensorOptions& options) {
  return at::zeros({batch, heads, key_width, value_width}, state_options(options));
}

}  // namespace weft
