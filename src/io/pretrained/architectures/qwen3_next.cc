// Qwen3-Next and the text models of Qwen3.5: Gated DeltaNet layers, every few a gated attention layer; MLPs or experts.
// Qwen team 2025; Yang et al. 2024, arXiv:2412.06464 (linear layers); Qiu et al. 2025, arXiv:2505.06708 (the gate).
#include <algorithm>

#include "io/pretrained/architectures/qwen_hybrid.h"

namespace weft {
namespace {

DeltaConfig qwen_delta(int64_t width) {
  return {.width = width, .heads = 16, .head_dim = 128, .value_heads = 32, .value_dim = 128};
}

// The text model alone keeps its tensors under "model.", with images beside it they are under "model.language_model.".
std::string qwen_prefix(const TensorNames& tensors) {
  const std::string deep = "model.language_model.";
  return tensors.has(deep + "embed_tokens.weight", false) ? deep : "model.";
}

struct QwenText {
  QwenHybrid sizes;
  RopeSettings rope;
  std::vector<std::string> types;  // of the layers
};

QwenText read_qwen_text(const ConfigReader& config, const TensorNames& tensors, Blueprint& out,
                        QwenHybrid defaults, int64_t layers, int64_t vocab) {
  QwenText m{.sizes = read_qwen_hybrid(config, std::move(defaults)), .rope = {}, .types = {}};
  m.rope = read_rope(config, m.sizes.head_dim, {.theta = 10000, .partial = 0.25, .positions = 32768});
  m.types = read_linear_layer_types(config, config.integer("num_hidden_layers", layers),
                                    {"linear_attention", "full_attention"});
  take_qwen_frame(config, tensors, out, m.sizes, vocab, false);
  return m;
}

std::string add_text_layer(Blueprint& out, const QwenText& m, size_t i, const Node& ffn,
                           const std::string& from) {
  if (m.types[i] == "linear_attention") return add_qwen_layer(out, m.sizes, std::nullopt, ffn, from);
  auto attention = Node::map();
  m.rope.set(attention);
  return add_qwen_layer(out, m.sizes, attention, ffn, from);
}

void describe_qwen3_next(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto m = read_qwen_text(config, tensors, out, {.delta = qwen_delta(2048)}, 48, 151936);
  const auto& activation = m.sizes.delta.activation;
  const auto dense =
      fields("mlp", fields("hidden", config.integer("intermediate_size", 5632), "activation", activation));
  const bool has_experts = config.integer("num_experts", 512) > 0;
  const auto experts =
      read_qwen_experts(config, m.sizes.delta, config.flag("norm_topk_prob", true), true, 512, 10);
  const auto step = config.integer("decoder_sparse_step", 1);
  const auto only = config.integers("mlp_only_layers");
  for (size_t i = 0; i < m.types.size(); ++i) {
    const auto layer = static_cast<int64_t>(i);
    const bool sparse =
        has_experts && (layer + 1) % step == 0 && std::find(only.begin(), only.end(), layer) == only.end();
    const auto from = fmt::format("{}layers.{}.", m.sizes.prefix, i);
    const auto to = add_text_layer(out, m, i, sparse ? experts.node : dense, from) + "ffn.";
    if (sparse)
      take_qwen_experts(out, tensors, experts, to, from + "mlp.");
    else
      take_mlp(out, to, from + "mlp.");
  }
}

void describe_qwen3_5(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto m = read_qwen_text(config, tensors, out,
                                {.delta = qwen_delta(4096),
                                 .kv_heads = 4,
                                 .rows = QwenHybrid::Rows::separate,
                                 .prefix = qwen_prefix(tensors)},
                                32, 248320);
  const auto ffn = fields("mlp", fields("hidden", config.integer("intermediate_size", 12288), "activation",
                                        m.sizes.delta.activation));
  for (size_t i = 0; i < m.types.size(); ++i) {
    const auto from = fmt::format("{}layers.{}.", m.sizes.prefix, i);
    take_mlp(out, add_text_layer(out, m, i, ffn, from) + "ffn.", from + "mlp.");
  }
}

void describe_qwen3_5_moe(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto m = read_qwen_text(
      config, tensors, out,
      {.delta = qwen_delta(2048), .rows = QwenHybrid::Rows::separate, .prefix = qwen_prefix(tensors)}, 40,
      248320);
  const auto experts = read_qwen_experts(config, m.sizes.delta, true, true, 256, 8);
  for (size_t i = 0; i < m.types.size(); ++i) {
    const auto from = fmt::format("{}layers.{}.", m.sizes.prefix, i);
    const auto to = add_text_layer(out, m, i, experts.node, from);
    take_qwen_experts(out, tensors, experts, to + "ffn.", from + "mlp.");
  }
}

const RegisterArchitecture register_qwen3_next{{"qwen3_next", {}, describe_qwen3_next}};
// Keys of published files that transformers does not read.
const std::vector<std::string> kQwen35Unread{
    "attn_output_gate", "mamba_ssm_dtype",     "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings",
    "mlp_only_layers",  "decoder_sparse_step", "norm_topk_prob"};
const RegisterArchitecture register_qwen3_5_text{{"qwen3_5_text", kQwen35Unread, describe_qwen3_5}};
const RegisterArchitecture register_qwen3_5_moe_text{
    {"qwen3_5_moe_text", kQwen35Unread, describe_qwen3_5_moe}};

}  // namespace
}  // namespace weft
