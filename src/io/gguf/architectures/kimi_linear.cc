// "kimi-linear": Kimi delta attention and latent attention whose key and value projections are kept apart, the keys'
// transposed per head.
#include <algorithm>

#include "io/gguf/architectures/shared.h"

namespace weft::gguf {
namespace {

void read_kimi(const GgufFile& file, nlohmann::json& config) {
  const auto& metadata = file.metadata();
  read_common(file, "kimi_linear", "KimiLinearForCausalLM", config);
  const auto heads = metadata.integer(".attention.head_count"),
             rope = metadata.integer(".rope.dimension_count"),
             dense = metadata.integer(".leading_dense_block_count", 0);
  config["num_attention_heads"] = config["num_key_value_heads"] = heads;
  config["intermediate_size"] = metadata.integer(".feed_forward_length");
  config["kv_lora_rank"] = metadata.integer(".attention.kv_lora_rank");
  if (metadata.has(".attention.q_lora_rank"))
    config["q_lora_rank"] = metadata.integer(".attention.q_lora_rank");
  config["qk_rope_head_dim"] = rope;
  config["qk_nope_head_dim"] = metadata.integer(".attention.key_length_mla") - rope;
  config["v_head_dim"] = metadata.integer(".attention.value_length_mla");
  config["linear_num_heads"] = heads;
  config["linear_head_dim"] = metadata.integer(".kda.head_dim");
  config["linear_conv_kernel_dim"] = metadata.integer(".ssm.conv_kernel");
  auto types = nlohmann::json::array(), mlps = nlohmann::json::array();
  for (int64_t i = 0; i < config["num_hidden_layers"].get<int64_t>(); ++i) {
    types.push_back(file.contains(block(i) + "ssm_a") ? "linear_attention" : "full_attention");
    mlps.push_back(i < dense ? "dense" : "sparse");
  }
  config["layer_types"] = types;
  config["mlp_layer_types"] = mlps;
  config["num_experts"] = metadata.integer(".expert_count");
  config["num_experts_per_token"] = metadata.integer(".expert_used_count");
  config["num_shared_experts"] = metadata.integer(".expert_shared_count");
  config["moe_intermediate_size"] = metadata.integer(".expert_feed_forward_length");
  config["moe_renormalize"] = metadata.flag(".expert_weights_norm", true);
  config["routed_scaling_factor"] = metadata.number(".expert_weights_scale", 1.0);
  config["num_expert_group"] = metadata.integer(".expert_group_count", 1);
  config["topk_group"] = metadata.integer(".expert_group_used_count", 1);
  config["hidden_act"] = "silu";
}

// Either spelling of the config: lists of kinds, or linear_attn_config with layers counted from 1.
struct KimiLayers {
  std::vector<bool> linear, dense;
  int64_t head_dim = 128, heads = 0, kernel = 4;
  explicit KimiLayers(const ConfigReader& config) {
    const auto layers = config.integer("num_hidden_layers");
    const auto types = config.texts("layer_types"), mlps = config.texts("mlp_layer_types");
    const auto legacy = config.child("linear_attn_config");
    const auto listed = legacy ? legacy->integers("kda_layers") : std::vector<int64_t>();
    const auto first_sparse = config.integer("first_k_dense_replace", 0);
    for (int64_t i = 0; i < layers; ++i) {
      const auto at = static_cast<size_t>(i);
      linear.push_back(types.empty() ? std::find(listed.begin(), listed.end(), i + 1) != listed.end()
                                     : types.at(at) == "linear_attention");
      dense.push_back(mlps.empty() ? i < first_sparse : mlps.at(at) == "dense");
    }
    heads = config.integer("linear_num_heads", legacy ? legacy->integer("num_heads") : 32);
    head_dim = config.integer("linear_head_dim", legacy ? legacy->integer("head_dim") : 128);
    kernel =
        config.integer("linear_conv_kernel_dim", legacy ? legacy->integer("short_conv_kernel_size", 4) : 4);
  }
};

void write_kimi(const ConfigReader& config, GgufMetadata& metadata) {
  write_common(config, metadata);
  const KimiLayers layers(config);
  const auto rope = config.integer("qk_rope_head_dim"), rank = config.integer("kv_lora_rank"),
             heads = config.integer("num_attention_heads");
  config.need(layers.heads == heads, "linear_num_heads",
              "the GGUF architecture has one number of heads for all layers");
  std::vector<int64_t> kv;
  for (const bool linear : layers.linear) kv.push_back(linear ? 0 : 1);
  metadata.set_u32(".attention.head_count", heads);
  metadata.set_i32s(".attention.head_count_kv", kv);
  metadata.set_u32(".feed_forward_length", config.integer("intermediate_size"));
  metadata.set_u32(".attention.kv_lora_rank", rank);
  if (config.has("q_lora_rank")) metadata.set_u32(".attention.q_lora_rank", config.integer("q_lora_rank"));
  metadata.set_u32(".rope.dimension_count", rope);
  metadata.set_u32(".attention.key_length", rank + rope);
  metadata.set_u32(".attention.value_length", rank);
  metadata.set_u32(".attention.key_length_mla", config.integer("qk_nope_head_dim") + rope);
  metadata.set_u32(".attention.value_length_mla", config.integer("v_head_dim"));
  metadata.set_u32(".kda.head_dim", layers.head_dim);
  metadata.set_u32(".ssm.conv_kernel", layers.kernel);
  metadata.set_u32(".expert_count", config.integer("num_experts"));
  metadata.set_u32(".expert_used_count", config.integer({"num_experts_per_token", "num_experts_per_tok"}));
  metadata.set_u32(".expert_shared_count", config.integer({"num_shared_experts", "n_shared_experts"}, 1));
  metadata.set_u32(".expert_feed_forward_length", config.integer("moe_intermediate_size"));
  metadata.set_flag(".expert_weights_norm", config.flag({"moe_renormalize", "norm_topk_prob"}, true));
  metadata.set_f32(".expert_weights_scale", config.number("routed_scaling_factor", 1.0));
  metadata.set_u32(".expert_group_count", config.integer({"num_expert_group", "n_group"}, 1));
  metadata.set_u32(".expert_group_used_count", config.integer("topk_group", 1));
  metadata.set_u32(".expert_gating_func", 2);  // sigmoid
  const auto dense = std::count(layers.dense.begin(), layers.dense.end(), true);
  metadata.set_u32(".leading_dense_block_count", dense);
}

void name_kda(const KimiLayers& layers, GgufNames& names, const std::string& from, const std::string& to) {
  const auto channels = layers.heads * layers.head_dim;
  const std::vector<int64_t> heads = {1, 1, layers.heads, 1};
  const bool wide = names.reading();  // the checkpoint may have the heads alone
  names.link({.tensor = from + "A_log",
              .pieces = {{.tensor = to + "ssm_a", .shape = heads}},
              .shape = wide ? heads : std::vector<int64_t>(),
              .value = GgufLink::Value::negative_exp});
  names.link(from + "dt_bias", to + "ssm_dt.bias");
  for (const char* part : {"q", "k", "v"}) {
    names.link({.tensor = fmt::format("{}{}_conv1d.weight", from, part),
                .pieces = {{.tensor = fmt::format("{}ssm_conv1d_{}.weight", to, part),
                            .shape = {1, channels, 1, layers.kernel}}},
                .shape = {channels, 1, layers.kernel}});
    names.link(fmt::format("{}{}_proj.weight", from, part), fmt::format("{}attn_{}.weight", to, part));
  }
  for (const auto& [ours, theirs] : {std::pair{"f_a_proj", "ssm_f_a"},
                                     {"f_b_proj", "ssm_f_b"},
                                     {"g_a_proj", "ssm_g_a"},
                                     {"g_b_proj", "ssm_g_b"},
                                     {"b_proj", "ssm_beta"},
                                     {"o_norm", "ssm_norm"},
                                     {"o_proj", "attn_output"}})
    names.link(fmt::format("{}{}.weight", from, ours), fmt::format("{}{}.weight", to, theirs));
}

void name_latent(const ConfigReader& config, GgufNames& names, const std::string& from,
                 const std::string& to) {
  const auto heads = config.integer("num_attention_heads"), rank = config.integer("kv_lora_rank"),
             nope = config.integer("qk_nope_head_dim"), values = config.integer("v_head_dim");
  for (const auto& [ours, theirs] : {std::pair{"q_proj", "attn_q"},
                                     {"q_a_proj", "attn_q_a"},
                                     {"q_a_layernorm", "attn_q_a_norm"},
                                     {"q_b_proj", "attn_q_b"}})
    names.optional(fmt::format("{}{}.weight", from, ours), fmt::format("{}{}.weight", to, theirs));
  names.link(from + "kv_a_proj_with_mqa.weight", to + "attn_kv_a_mqa.weight");
  names.link(from + "kv_a_layernorm.weight", to + "attn_kv_a_norm.weight");
  names.link(from + "o_proj.weight", to + "attn_output.weight");
  if (names.reading() && names.has("", to + "attn_kv_b.weight")) {
    names.link(from + "kv_b_proj.weight", to + "attn_kv_b.weight");
    return;
  }
  std::vector<Piece> pieces;
  for (int64_t h = 0; h < heads; ++h) {
    pieces.push_back({.tensor = to + "attn_k_b.weight",
                      .shape = {heads, rank, nope},
                      .rows = row_range(h * nope, (h + 1) * nope),
                      .transposed = true});
    pieces.push_back({.tensor = to + "attn_v_b.weight",
                      .shape = {heads, values, rank},
                      .rows = row_range(h * values, (h + 1) * values)});
  }
  names.link({.tensor = from + "kv_b_proj.weight",
              .pieces = std::move(pieces),
              .shape = {heads * (nope + values), rank}});
}

void name_kimi_experts(const ConfigReader& config, GgufNames& names, const std::string& from,
                       const std::string& to) {
  const auto experts = config.integer("num_experts"), hidden = config.integer("moe_intermediate_size"),
             width = config.integer("hidden_size");
  names.link(from + "gate.weight", to + "ffn_gate_inp.weight");
  names.link(from + "gate.e_score_correction_bias", to + "exp_probs_b.bias");
  for (const char* part : {"gate", "up", "down"})
    names.optional(fmt::format("{}shared_experts.{}_proj.weight", from, part),
                   fmt::format("{}ffn_{}_shexp.weight", to, part));
  for (int64_t e = 0; e < experts; ++e) {
    const auto expert = fmt::format("{}experts.{}.", from, e);
    name_expert(names, expert + "w1.weight", to + "ffn_gate_exps.weight", e, experts, hidden, width);
    name_expert(names, expert + "w2.weight", to + "ffn_down_exps.weight", e, experts, width, hidden);
    name_expert(names, expert + "w3.weight", to + "ffn_up_exps.weight", e, experts, hidden, width);
  }
}

void name_kimi(const ConfigReader& config, GgufNames& names) {
  name_ends(names);
  const KimiLayers layers(config);
  for (int64_t i = 0; i < static_cast<int64_t>(layers.linear.size()); ++i) {
    const auto from = layer(i), to = block(i);
    names.link(from + "input_layernorm.weight", to + "attn_norm.weight");
    names.link(from + "post_attention_layernorm.weight", to + "ffn_norm.weight");
    if (layers.linear[static_cast<size_t>(i)])
      name_kda(layers, names, from + "self_attn.", to);
    else
      name_latent(config, names, from + "self_attn.", to);
    if (!layers.dense[static_cast<size_t>(i)]) {
      name_kimi_experts(config, names, from + "block_sparse_moe.", to);
      continue;
    }
    // transformers writes the dense feed-forward under the name of the sparse one; both are read.
    const bool sparse_name = !names.reading() && names.has(from + "block_sparse_moe.gate_proj.weight", "");
    const auto mlp = from + (sparse_name ? "block_sparse_moe." : "mlp.");
    name_gated_mlp(names, to, mlp + "gate_proj", mlp + "up_proj", mlp + "down_proj");
  }
}

const RegisterGgufArchitecture register_gguf_kimi{
    {"kimi-linear", {"kimi_linear"}, read_kimi, write_kimi, name_kimi}};

}  // namespace
}  // namespace weft::gguf
