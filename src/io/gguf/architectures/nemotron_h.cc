// "nemotron_h" and "nemotron_h_moe": one mixer a layer: Mamba-2, attention, a feed-forward without gate, or experts.
#include <algorithm>

#include "io/gguf/architectures/shared.h"

namespace weft::gguf {
namespace {

std::string layer_kind(const GgufFile& file, int64_t i) {
  if (file.contains(block(i) + "ssm_in.weight")) return "linear_attention";
  if (file.contains(block(i) + "attn_q.weight")) return "full_attention";
  return file.contains(block(i) + "ffn_gate_inp.weight") ? "moe" : "mlp";
}

void read_nemotron_experts(const GgufMetadata& metadata, nlohmann::json& config) {
  config["n_routed_experts"] = metadata.integer(".expert_count");
  config["num_experts_per_tok"] = metadata.integer(".expert_used_count");
  config["moe_intermediate_size"] = metadata.integer(".expert_feed_forward_length");
  config["moe_shared_expert_intermediate_size"] = metadata.integer(".expert_shared_feed_forward_length");
  config["n_shared_experts"] = metadata.integer(".expert_shared_count", 1);
  config["norm_topk_prob"] = metadata.flag(".expert_weights_norm", true);
  config["routed_scaling_factor"] = metadata.number(".expert_weights_scale", 1.0);
  config["n_group"] = metadata.integer(".expert_group_count", 1);
  config["topk_group"] = metadata.integer(".expert_group_used_count", 1);
  if (metadata.has(".moe_latent_size")) config["moe_latent_size"] = metadata.integer(".moe_latent_size");
}

void read_nemotron(const GgufFile& file, nlohmann::json& config) {
  const auto& metadata = file.metadata();
  const auto sizes = read_mamba2(metadata);
  read_common(file, "nemotron_h", "NemotronHForCausalLM", config);
  config["layer_norm_epsilon"] = metadata.number(".attention.layer_norm_rms_epsilon",
                                                 metadata.number(".attention.layer_norm_epsilon", 1e-5));
  config.erase("rms_norm_eps");
  read_heads(metadata, config);
  const auto layers = metadata.integer(".block_count") - metadata.integer(".nextn_predict_layers", 0);
  config["num_hidden_layers"] = layers;
  auto kinds = nlohmann::json::array();
  for (int64_t i = 0; i < layers; ++i) {
    kinds.push_back(layer_kind(file, i));
    if (kinds.back() == "mlp")
      config["intermediate_size"] = file.tensor(block(i) + "ffn_up.weight").shape.front();
  }
  config["layers_block_type"] = kinds;
  config["mamba_num_heads"] = sizes.heads;
  config["mamba_head_dim"] = sizes.inner / std::max<int64_t>(sizes.heads, 1);
  config["n_groups"] = sizes.groups;
  config["ssm_state_size"] = sizes.state;
  config["conv_kernel"] = sizes.kernel;
  config["mlp_hidden_act"] = "relu2";
  config["mamba_hidden_act"] = "silu";
  config["use_bias"] = config["mlp_bias"] = config["attention_bias"] = false;
  bool conv_bias = false;
  for (int64_t i = 0; i < layers; ++i) conv_bias = conv_bias || file.contains(block(i) + "ssm_conv1d.bias");
  config["use_conv_bias"] = conv_bias;
  if (metadata.integer(".expert_count", 0) > 0) read_nemotron_experts(metadata, config);
}

std::vector<std::string> nemotron_layers(const ConfigReader& config) {
  std::vector<std::string> kinds;
  if (config.has("layers_block_type") || config.has("layer_types")) {
    for (const auto& kind : config.texts({"layers_block_type", "layer_types"}))
      kinds.push_back(kind == "mamba" ? "linear_attention" : kind == "attention" ? "full_attention" : kind);
    return kinds;
  }
  for (const char letter : config.text("hybrid_override_pattern"))
    kinds.push_back(letter == 'M'   ? "linear_attention"
                    : letter == '*' ? "full_attention"
                    : letter == 'E' ? "moe"
                                    : "mlp");
  return kinds;
}

Mamba2Sizes nemotron_sizes(const ConfigReader& config) {
  const auto heads = config.integer("mamba_num_heads", 128);
  return {.heads = heads,
          .inner = heads * config.integer("mamba_head_dim", 64),
          .groups = config.integer({"n_groups", "mamba_n_groups"}, 8),
          .state = config.integer({"ssm_state_size", "mamba_state_size"}, 128),
          .kernel = config.integer({"conv_kernel", "mamba_d_conv"}, 4)};
}

void write_nemotron_experts(const ConfigReader& config, GgufMetadata& metadata) {
  metadata.set_u32(".expert_count", config.integer("n_routed_experts", 8));
  metadata.set_u32(".expert_used_count", config.integer("num_experts_per_tok", 2));
  metadata.set_u32(".expert_feed_forward_length", config.integer("moe_intermediate_size", 7688));
  metadata.set_u32(".expert_shared_feed_forward_length",
                   config.integer("moe_shared_expert_intermediate_size", 7688));
  metadata.set_u32(".expert_shared_count", config.integer("n_shared_experts", 1));
  metadata.set_flag(".expert_weights_norm", config.flag("norm_topk_prob", true));
  metadata.set_f32(".expert_weights_scale", config.number("routed_scaling_factor", 1.0));
  metadata.set_u32(".expert_group_count", config.integer("n_group", 1));
  metadata.set_u32(".expert_group_used_count", config.integer("topk_group", 1));
  if (config.has("moe_latent_size")) metadata.set_u32(".moe_latent_size", config.integer("moe_latent_size"));
}

void write_nemotron(const ConfigReader& config, GgufMetadata& metadata) {
  const auto kinds = nemotron_layers(config);
  const bool experts = std::find(kinds.begin(), kinds.end(), "moe") != kinds.end();
  if (experts) metadata.set_text("general.architecture", "nemotron_h_moe");
  metadata.set_u32(".block_count", static_cast<int64_t>(kinds.size()));
  metadata.set_u32(".context_length", config.integer("max_position_embeddings", 4096));
  metadata.set_u32(".embedding_length", config.integer("hidden_size"));
  metadata.set_u32(".vocab_size", config.integer("vocab_size"));
  metadata.set_f32(".attention.layer_norm_rms_epsilon", config.number("layer_norm_epsilon", 1e-5));
  write_heads(config, metadata);
  std::vector<int64_t> kv, hidden;
  for (const auto& kind : kinds) {
    kv.push_back(kind == "full_attention" ? config.integer("num_key_value_heads", 8) : 0);
    hidden.push_back(kind == "moe"   ? config.integer("moe_intermediate_size", 7688)
                     : kind == "mlp" ? config.integer("intermediate_size", 21504)
                                     : 0);
  }
  metadata.set_i32s(".attention.head_count_kv", kv);
  metadata.set_i32s(".feed_forward_length", hidden);
  metadata.set_u32(".rope.dimension_count", head_dim_of(config));
  metadata.set_flag(".rope.scaling.finetuned", false);
  write_mamba2(nemotron_sizes(config), metadata);
  if (experts) write_nemotron_experts(config, metadata);
}

void name_nemotron_experts(const ConfigReader& config, GgufNames& names, const std::string& from,
                           const std::string& to) {
  const auto experts = config.integer("n_routed_experts", 8),
             hidden = config.integer("moe_intermediate_size", 7688),
             width = config.integer("moe_latent_size", config.integer("hidden_size"));
  names.link(from + "gate.weight", to + "ffn_gate_inp.weight");
  names.link(from + "gate.e_score_correction_bias", to + "exp_probs_b.bias");
  names.link(from + "shared_experts.up_proj.weight", to + "ffn_up_shexp.weight");
  names.link(from + "shared_experts.down_proj.weight", to + "ffn_down_shexp.weight");
  names.optional(from + "fc1_latent_proj.weight", to + "ffn_latent_down.weight");
  names.optional(from + "fc2_latent_proj.weight", to + "ffn_latent_up.weight");
  for (int64_t e = 0; e < experts; ++e) {
    const auto expert = fmt::format("{}experts.{}.", from, e);
    name_expert(names, expert + "up_proj.weight", to + "ffn_up_exps.weight", e, experts, hidden, width);
    name_expert(names, expert + "down_proj.weight", to + "ffn_down_exps.weight", e, experts, width, hidden);
  }
}

void name_nemotron(const ConfigReader& config, GgufNames& names) {
  name_ends(names, "backbone.embeddings.weight", "backbone.norm_f.weight");
  const auto kinds = nemotron_layers(config);
  names.pass_over(block(static_cast<int64_t>(kinds.size())));  // of the prediction of further tokens
  for (int64_t i = 0; i < static_cast<int64_t>(kinds.size()); ++i) {
    const auto from = fmt::format("backbone.layers.{}.", i), mixer = from + "mixer.", to = block(i);
    const auto& kind = kinds[static_cast<size_t>(i)];
    names.link(from + "norm.weight", to + "attn_norm.weight");
    if (kind == "linear_attention") {
      name_mamba2(names, mixer, to, nemotron_sizes(config));
    } else if (kind == "full_attention") {
      name_attention(config, names, mixer, to, true);
    } else if (kind == "mlp") {
      names.linear(mixer + "up_proj", to + "ffn_up");
      names.linear(mixer + "down_proj", to + "ffn_down");
    } else {
      name_nemotron_experts(config, names, mixer, to);
    }
  }
}

const RegisterGgufArchitecture register_gguf_nemotron{
    {"nemotron_h", {"nemotron_h"}, read_nemotron, write_nemotron, name_nemotron}};
const RegisterGgufArchitecture register_gguf_nemotron_moe{
    {"nemotron_h_moe", {}, read_nemotron, write_nemotron, name_nemotron}};

}  // namespace
}  // namespace weft::gguf
