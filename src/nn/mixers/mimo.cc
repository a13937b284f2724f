#include "nn/mixers/mimo.h"

#include "nn/mixers/ssm.h"
#include "nn/mixers/step_size.h"
#include "ops/scan/scan.h"
#include "ops/shape.h"

namespace weft {
namespace {

// B x as one real product: [B, T, P] complex.
at::Tensor into_states(const MimoSystem& system, const at::Tensor& x) {
  const auto weight = at::cat({at::real(system.b), at::imag(system.b)}).to(x.scalar_type());  // [2 P, D]
  const auto halves = at::linear(x, weight).chunk(2, -1);
  return at::complex(halves[0].contiguous(), halves[1].contiguous());
}

// Re(C h) + skip x: [B, T, D].
at::Tensor out_of_states(const MimoSystem& system, const at::Tensor& h, const at::Tensor& x) {
  const auto weight = at::cat({at::real(system.c), -at::imag(system.c)}, 1).to(x.scalar_type());  // [D, 2 P]
  return at::linear(at::cat({at::real(h), at::imag(h)}, -1), weight) + system.skip.to(x.scalar_type()) * x;
}

at::Tensor decay_for(const MimoSystem& system, const at::Tensor& wide) {
  return system.a.to(c10::toComplexType(wide.scalar_type()));
}

}  // namespace

at::Tensor run_mimo(const MimoSystem& system, const at::Tensor& x, State& state, const Context& context) {
  const auto wide = x.to(accumulate_type(x));
  const auto result = ops::scan(decay_for(system, wide), into_states(system, wide), from_state(state.at("h")),
                                context.starts);
  state.set("h", to_state(result.state));
  return out_of_states(system, result.h, wide);
}

at::Tensor step_mimo(const MimoSystem& system, const at::Tensor& x, State& state) {
  const auto wide = x.to(accumulate_type(x));
  const auto h = at::view_as_complex(state.writable("h").squeeze(-1));
  return out_of_states(system, ops::scan_step(decay_for(system, wide), into_states(system, wide), h), wide);
}

Summary mimo_summary(const MimoSystem& system, const at::Tensor& x, const Context& context) {
  const auto wide = x.to(accumulate_type(x));
  const auto after = ops::scan(decay_for(system, wide), into_states(system, wide), {}, context.starts).state;
  Summary summary;
  summary.maps["h"] = complex_map(to_power(system.a, x.size(1)), after, context.starts);
  return summary;
}

State mimo_state(int64_t batch, int64_t states, const at::TensorOptions& options) {
  State state;
  state.set("h", at::zeros({batch, states, 2, 1}, state_options(options)));
  return state;
}

}  // namespace weft
