// "granitehybrid": Granite 4 (Mamba-2, attention, experts and a shared feed-forward, multipliers), and Bamba.
#include <algorithm>

#include "io/gguf/architectures/shared.h"

namespace weft::gguf {
namespace {

void read_layers_and_mamba(const GgufFile& file, nlohmann::json& config) {
  const auto sizes = read_mamba2(file.metadata());
  config["mamba_n_heads"] = sizes.heads;
  config["mamba_d_head"] = sizes.inner / std::max<int64_t>(sizes.heads, 1);
  config["mamba_n_groups"] = sizes.groups;
  config["mamba_d_state"] = sizes.state;
  config["mamba_d_conv"] = sizes.kernel;
  config["mamba_expand"] = sizes.inner / config["hidden_size"].get<int64_t>();
  config["mamba_proj_bias"] = false;
  bool conv_bias = false;
  for (int64_t i = 0; i < config["num_hidden_layers"].get<int64_t>(); ++i)
    conv_bias = conv_bias || file.contains(block(i) + "ssm_conv1d.bias");
  config["mamba_conv_bias"] = conv_bias;
  config["attention_bias"] = false;
  config["hidden_act"] = "silu";
}

void read_granite(const GgufFile& file, nlohmann::json& config) {
  const auto& metadata = file.metadata();
  auto types = nlohmann::json::array();
  for (int64_t i = 0; i < config["num_hidden_layers"].get<int64_t>(); ++i)
    types.push_back(file.contains(block(i) + "attn_q.weight") ? "full_attention" : "linear_attention");
  config["layer_types"] = types;
  config["attention_multiplier"] = metadata.number(".attention.scale", 1.0);
  config["embedding_multiplier"] = metadata.number(".embedding_scale", 1.0);
  config["residual_multiplier"] = metadata.number(".residual_scale", 1.0);
  config["logits_scaling"] = metadata.number(".logit_scale", 1.0);
  config["position_embedding_type"] = metadata.flag(".rope.scaling.finetuned", false) ? "rope" : "nope";
  config["num_local_experts"] = metadata.integer(".expert_count", 0);
  config["num_experts_per_tok"] = metadata.integer(".expert_used_count", 0);
  config["shared_intermediate_size"] =
      metadata.integer(".expert_shared_feed_forward_length", metadata.integer(".feed_forward_length"));
}

// Bamba is told from Granite by having rotary positions and no multipliers.
bool is_bamba(const GgufMetadata& metadata) {
  return metadata.flag(".rope.scaling.finetuned", false) && !metadata.has(".attention.scale") &&
         !metadata.has(".residual_scale");
}

void read_hybrid(const GgufFile& file, nlohmann::json& config) {
  const auto& metadata = file.metadata();
  const bool bamba = is_bamba(metadata);
  if (bamba)
    read_common(file, "bamba", "BambaForCausalLM", config);
  else
    read_common(file, "granitemoehybrid", "GraniteMoeHybridForCausalLM", config);
  const auto heads = metadata.integer(".attention.head_count");
  config["num_attention_heads"] = heads;
  int64_t kv_heads = 0;
  for (const auto count : metadata.per_layer(".attention.head_count_kv", config["num_hidden_layers"]))
    kv_heads = std::max(kv_heads, count);
  config["num_key_value_heads"] = kv_heads > 0 ? kv_heads : heads;
  config["intermediate_size"] = metadata.integer(".feed_forward_length");
  read_rope(file, config);
  read_layers_and_mamba(file, config);
  if (!bamba) {
    read_granite(file, config);
    return;
  }
  config["rope_parameters"]["partial_rotary_factor"] = 0.5;
  auto attention = nlohmann::json::array();
  for (int64_t i = 0; i < config["num_hidden_layers"].get<int64_t>(); ++i)
    if (file.contains(block(i) + "attn_q.weight")) attention.push_back(i);
  config["attn_layer_indices"] = attention;
}

std::vector<bool> attention_layers(const ConfigReader& config) {
  std::vector<bool> attention(static_cast<size_t>(config.integer("num_hidden_layers")), false);
  const auto types = config.texts({"layer_types", "layers_block_type"});
  for (size_t i = 0; i < std::min(types.size(), attention.size()); ++i)
    attention[i] = types[i] == "full_attention" || types[i] == "attention";
  if (types.empty())
    for (const auto i : config.integers("attn_layer_indices")) attention.at(static_cast<size_t>(i)) = true;
  return attention;
}

Mamba2Sizes hybrid_sizes(const ConfigReader& config) {
  const auto inner = config.integer("mamba_expand", 2) * config.integer("hidden_size");
  return {.heads = config.integer("mamba_n_heads", 128),
          .inner = inner,
          .groups = config.integer("mamba_n_groups", 1),
          .state = config.integer("mamba_d_state", 256),
          .kernel = config.integer("mamba_d_conv", 4)};
}

void write_hybrid(const ConfigReader& config, GgufMetadata& metadata) {
  write_common(config, metadata);
  const auto heads = config.integer("num_attention_heads"),
             kv_heads = config.integer("num_key_value_heads", heads);
  std::vector<int64_t> kv;
  for (const bool attention : attention_layers(config)) kv.push_back(attention ? kv_heads : 0);
  const bool bamba = config.text("model_type") == "bamba";
  config.need(!config.flag("mamba_proj_bias", false), "mamba_proj_bias",
              "GGUF has no name for it: expected false");
  metadata.set_u32(".attention.head_count", heads);
  metadata.set_i32s(".attention.head_count_kv", kv);
  metadata.set_u32(".feed_forward_length", config.integer("intermediate_size"));
  metadata.set_u32(".rope.dimension_count", head_dim_of(config));
  write_rope(config, metadata);
  write_mamba2(hybrid_sizes(config), metadata);
  metadata.set_flag(".rope.scaling.finetuned",
                    bamba || config.text("position_embedding_type", "rope") == "rope");
  if (bamba) {
    metadata.set_u32(".rope.dimension_count", head_dim_of(config) / 2);
    return;
  }
  metadata.set_f32(".attention.scale", config.number("attention_multiplier", 1.0));
  metadata.set_f32(".embedding_scale", config.number("embedding_multiplier", 1.0));
  metadata.set_f32(".residual_scale", config.number("residual_multiplier", 1.0));
  metadata.set_f32(".logit_scale", config.number("logits_scaling", 1.0));
  metadata.set_u32(".expert_shared_feed_forward_length", config.integer("shared_intermediate_size", 1024));
  if (config.integer("num_local_experts", 8) == 0) return;
  metadata.set_u32(".expert_count", config.integer("num_local_experts", 8));
  metadata.set_u32(".expert_used_count", config.integer("num_experts_per_tok", 2));
}

// Rows of gate and up, one after the other in the checkpoint.
void name_gate_up(GgufNames& names, const std::string& tensor, const std::string& gate, const std::string& up,
                  int64_t hidden, int64_t width) {
  names.link(
      {.tensor = tensor,
       .pieces = {{.tensor = gate, .shape = {hidden, width}}, {.tensor = up, .shape = {hidden, width}}},
       .shape = {2 * hidden, width}});
}

void name_granite_ffn(const ConfigReader& config, GgufNames& names, const std::string& from,
                      const std::string& to) {
  const auto width = config.integer("hidden_size"), hidden = config.integer("intermediate_size"),
             shared = config.integer("shared_intermediate_size", 1024),
             experts = config.integer("num_local_experts", 8);
  const std::string end = experts == 0 ? ".weight" : "_shexp.weight";
  names.link(from + "post_attention_layernorm.weight", to + "ffn_norm.weight");
  name_gate_up(names, from + "shared_mlp.input_linear.weight", to + "ffn_gate" + end, to + "ffn_up" + end,
               shared, width);
  names.link(from + "shared_mlp.output_linear.weight", to + "ffn_down" + end);
  if (experts == 0) return;
  std::vector<Piece> pieces;
  for (int64_t e = 0; e < experts; ++e)
    for (const char* part : {"ffn_gate_exps.weight", "ffn_up_exps.weight"})
      pieces.push_back({.tensor = to + part,
                        .shape = {experts, hidden, width},
                        .rows = row_range(e * hidden, (e + 1) * hidden)});
  names.link(from + "block_sparse_moe.router.layer.weight", to + "ffn_gate_inp.weight");
  names.link({.tensor = from + "block_sparse_moe.input_linear.weight",
              .pieces = std::move(pieces),
              .shape = {experts, 2 * hidden, width}});
  names.link(from + "block_sparse_moe.output_linear.weight", to + "ffn_down_exps.weight");
}

void name_hybrid(const ConfigReader& config, GgufNames& names) {
  const bool bamba = config.text("model_type") == "bamba";
  name_ends(names, "model.embed_tokens.weight", bamba ? "model.final_layernorm.weight" : "model.norm.weight");
  const auto attention = attention_layers(config);
  for (int64_t i = 0; i < config.integer("num_hidden_layers"); ++i) {
    const auto from = layer(i), to = block(i);
    names.link(from + "input_layernorm.weight", to + "attn_norm.weight");
    if (attention[static_cast<size_t>(i)])
      name_attention(config, names, from + "self_attn.", to, true);
    else
      name_mamba2(names, from + "mamba.", to, hybrid_sizes(config));
    if (bamba) {
      names.link(from + "pre_ff_layernorm.weight", to + "ffn_norm.weight");
      name_gated_mlp(names, to, from + "feed_forward.gate_proj", from + "feed_forward.up_proj",
                     from + "feed_forward.down_proj");
    } else {
      name_granite_ffn(config, names, from, to);
    }
  }
}

const RegisterGgufArchitecture register_gguf_granite_hybrid{
    {"granitehybrid", {"granitemoehybrid", "bamba"}, read_hybrid, write_hybrid, name_hybrid}};

}  // namespace
}  // namespace weft::gguf
