// Lara Mini: Gated DeltaNet layers, attention over a window with rotary positions and over all tokens without; experts.
// Translated 2026.
#include "io/pretrained/architectures/qwen_hybrid.h"

namespace weft {
namespace {

// Of every five layers the second and fifth slide, the fourth sees all tokens, the others are linear.
std::vector<std::string> lara_layer_types(const ConfigReader& config, int64_t layers) {
  static const std::vector<std::string> pattern{"linear_attention", "sliding_attention", "linear_attention",
                                                "full_attention", "sliding_attention"};
  if (config.has("layer_types")) return read_linear_layer_types(config, layers, pattern);
  std::vector<std::string> types;
  for (int64_t i = 0; i < layers; ++i) types.push_back(pattern[static_cast<size_t>(i) % pattern.size()]);
  return types;
}

void describe_lara_mini(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto q = read_qwen_hybrid(
      config, {.delta = {.width = 1024, .heads = 8, .head_dim = 128, .value_heads = 16, .value_dim = 128},
               .kv_heads = 4,
               .head_dim = 128,
               .gated = false,
               .norm = "rms",
               .rows = QwenHybrid::Rows::joined});
  take_qwen_frame(config, tensors, out, q, 151936, true);
  const auto rope = read_rope(config, q.head_dim, {.theta = 10000, .positions = 131072}, "sliding_attention");
  const auto window = config.integer("sliding_window", 512);
  auto experts = read_qwen_experts(config, q.delta, config.flag("norm_topk_prob", true), false, 128, 4);
  experts.sizes.stacked = true;
  const auto types = lara_layer_types(config, config.integer("num_hidden_layers", 34));
  for (size_t i = 0; i < types.size(); ++i) {
    const auto from = fmt::format("model.layers.{}.", i);
    std::optional<Node> attention;
    if (types[i] != "linear_attention") attention = fields("rope", 0.0);
    if (types[i] == "sliding_attention") {
      set_fields(*attention, "window", window);
      rope.set(*attention);
    }
    const auto to = add_qwen_layer(out, q, attention, experts.node, from);
    take_qwen_experts(out, tensors, experts, to + "ffn.", from + "mlp.");
  }
}

const RegisterArchitecture register_lara_mini{{"lara_mini", {}, describe_lara_mini}};

}  // namespace
}  // namespace weft
