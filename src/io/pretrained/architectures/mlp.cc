#include "io/pretrained/architectures/mlp.h"

#include <algorithm>

#include "ops/activation/named.h"

namespace weft {

std::string read_activation(const ConfigReader& config, const ConfigKey& key, const std::string& otherwise) {
  static const std::map<std::string, std::string> names{{"swish", "silu"},
                                                        {"gelu_python", "gelu"},
                                                        {"gelu_new", "gelu_tanh"},
                                                        {"gelu_fast", "gelu_tanh"},
                                                        {"gelu_accurate", "gelu_tanh"},
                                                        {"gelu_pytorch_tanh", "gelu_tanh"},
                                                        {"gelu_python_tanh", "gelu_tanh"},
                                                        {"quick_gelu", "gelu_quick"},
                                                        {"gelu_10", "gelu_clipped"},
                                                        {"hardswish", "hard_swish"},
                                                        {"sqrtsoftplus", "sqrt_softplus"},
                                                        {"linear", "none"}};
  const auto name = config.text(key, otherwise);
  if (const auto found = names.find(name); found != names.end()) return found->second;
  const auto& known = ops::activation_names();
  config.need(std::find(known.begin(), known.end(), name) != known.end(), key,
              "expected an activation without parameters, such as silu, gelu, gelu_pytorch_tanh or relu2");
  return name;
}

void take_linear(Blueprint& out, const std::string& to, const std::string& from, bool bias) {
  out.take(to + ".weight", from + ".weight");
  if (bias) out.take(to + ".bias", from + ".bias");
}

void take_mlp(Blueprint& out, const std::string& to, const std::string& from, bool bias,
              const MlpNames& names) {
  if (*names.gate) take_linear(out, to + "gate", from + names.gate, bias);
  take_linear(out, to + "up", from + names.up, bias);
  take_linear(out, to + "down", from + names.down, bias);
}

void take_fused_mlp(Blueprint& out, const std::string& to, const std::string& gate_up,
                    const std::string& down, int64_t hidden, int64_t width) {
  const std::vector<int64_t> shape{2 * hidden, width};
  out.take(to + "gate.weight", Piece{.tensor = gate_up, .shape = shape, .rows = row_range(0, hidden)});
  out.take(to + "up.weight", Piece{.tensor = gate_up, .shape = shape, .rows = row_range(hidden, 2 * hidden)});
  out.take(to + "down.weight", down);
}

}  // namespace weft
