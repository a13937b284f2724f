// "lfm2" and "lfm2moe": short convolutions and attention.
#include <algorithm>

#include "base/error.h"
#include "io/gguf/architectures/shared.h"

namespace weft::gguf {
namespace {

void read_lfm2_common(const GgufFile& file, const char* model_type, const char* class_name,
                      nlohmann::json& config) {
  const auto& metadata = file.metadata();
  read_common(file, model_type, class_name, config);
  config["norm_eps"] = config["rms_norm_eps"];
  config.erase("rms_norm_eps");
  read_heads(metadata, config);
  require(config["head_dim"] ==
              config["hidden_size"].get<int64_t>() / config["num_attention_heads"].get<int64_t>(),
          "{}: expected the width over the heads", metadata.where(".attention.key_length"));
  config.erase("head_dim");
  read_rope(file, config, 1e6);
  config["conv_L_cache"] = metadata.integer(".shortconv.l_cache");
  config["conv_bias"] = file.contains("blk.0.shortconv.in_proj.bias");
  config["intermediate_size"] = metadata.integer(".feed_forward_length");
  auto types = nlohmann::json::array();
  for (int64_t i = 0; i < config["num_hidden_layers"].get<int64_t>(); ++i)
    types.push_back(file.contains(block(i) + "attn_q.weight") ? "full_attention" : "conv");
  config["layer_types"] = types;
}

void read_lfm2(const GgufFile& file, nlohmann::json& config) {
  read_lfm2_common(file, "lfm2", "Lfm2ForCausalLM", config);
  config["block_auto_adjust_ff_dim"] = false;  // feed_forward_length is the width itself
}

void read_lfm2moe(const GgufFile& file, nlohmann::json& config) {
  const auto& metadata = file.metadata();
  read_lfm2_common(file, "lfm2_moe", "Lfm2MoeForCausalLM", config);
  config["num_experts"] = metadata.integer(".expert_count");
  config["num_experts_per_tok"] = metadata.integer(".expert_used_count");
  config["moe_intermediate_size"] = metadata.integer(".expert_feed_forward_length");
  const auto dense = metadata.integer(".leading_dense_block_count", 0);
  config["num_dense_layers"] = dense;
  config["use_expert_bias"] = file.contains(block(dense) + "exp_probs_b.bias");
  config["norm_topk_prob"] = metadata.flag(".expert_weights_norm", true);
  config["routed_scaling_factor"] = metadata.number(".expert_weights_scale", 1.0);
}

bool is_attention(const ConfigReader& config, int64_t i) {
  const auto types = config.texts("layer_types");
  if (!types.empty()) return types.at(static_cast<size_t>(i)) == "full_attention";
  const auto places = config.integers("full_attn_idxs");
  return std::find(places.begin(), places.end(), i) != places.end();
}

// The width of the feed-forward as transformers adjusts it.
int64_t lfm2_hidden(const ConfigReader& config) {
  auto hidden = config.integer({"block_ff_dim", "intermediate_size"}, 12288);
  if (config.text("model_type") != "lfm2" || !config.flag("block_auto_adjust_ff_dim", true)) return hidden;
  const auto multiple = config.integer("block_multiple_of", 256);
  hidden = 2 * hidden / 3;
  hidden = static_cast<int64_t>(config.number("block_ffn_dim_multiplier", 1.0) * static_cast<double>(hidden));
  return (hidden + multiple - 1) / multiple * multiple;
}

void write_lfm2(const ConfigReader& config, GgufMetadata& metadata) {
  write_common(config, metadata);
  const auto heads = config.integer("num_attention_heads"),
             kv_heads = config.integer("num_key_value_heads", heads);
  std::vector<int64_t> kv;
  for (int64_t i = 0; i < config.integer("num_hidden_layers"); ++i)
    kv.push_back(is_attention(config, i) ? kv_heads : 0);
  metadata.set_u32(".attention.head_count", heads);
  metadata.set_i32s(".attention.head_count_kv", kv);
  metadata.set_f32(".attention.layer_norm_rms_epsilon", config.number({"norm_eps", "block_norm_eps"}, 1e-5));
  metadata.set_u32(".shortconv.l_cache", config.integer("conv_L_cache", 3));
  metadata.set_u32(".feed_forward_length", lfm2_hidden(config));
  write_rope(config, metadata, 1e6);
  if (config.text("model_type") == "lfm2") return;
  config.need(config.flag("norm_topk_prob", true), "norm_topk_prob",
              "the GGUF architecture lfm2moe expects true");
  config.need(config.number("routed_scaling_factor", 1.0) == 1.0, "routed_scaling_factor", "GGUF expects 1");
  metadata.set_u32(".expert_count", config.integer("num_experts"));
  metadata.set_u32(".expert_used_count", config.integer("num_experts_per_tok"));
  metadata.set_u32(".expert_feed_forward_length", config.integer("moe_intermediate_size"));
  metadata.set_u32(".leading_dense_block_count", config.integer("num_dense_layers", 2));
  metadata.set_u32(".expert_gating_func", 2);  // sigmoid
}

void name_lfm2_experts(const ConfigReader& config, GgufNames& names, const std::string& ffn,
                       const std::string& to) {
  const auto experts = config.integer("num_experts"), hidden = config.integer("moe_intermediate_size"),
             width = config.integer("hidden_size");
  names.link(ffn + "gate.weight", to + "ffn_gate_inp.weight");
  names.optional(ffn + "expert_bias", to + "exp_probs_b.bias");
  for (int64_t e = 0; e < experts; ++e) {
    const auto expert = fmt::format("{}experts.{}.", ffn, e);
    name_expert(names, expert + "w1.weight", to + "ffn_gate_exps.weight", e, experts, hidden, width);
    name_expert(names, expert + "w2.weight", to + "ffn_down_exps.weight", e, experts, width, hidden);
    name_expert(names, expert + "w3.weight", to + "ffn_up_exps.weight", e, experts, hidden, width);
  }
}

// The norm after the last layer has the name of one after the embedding: so it is called in the checkpoint.
void name_lfm2(const ConfigReader& config, GgufNames& names) {
  names.link("model.embed_tokens.weight", "token_embd.weight");
  names.link("model.embedding_norm.weight", names.has("model.embedding_norm.weight", "token_embd_norm.weight")
                                                ? "token_embd_norm.weight"
                                                : "output_norm.weight");
  names.optional("lm_head.weight", "output.weight");
  const auto width = config.integer("hidden_size"), kernel = config.integer("conv_L_cache", 3),
             dense = config.text("model_type") == "lfm2" ? config.integer("num_hidden_layers")
                                                         : config.integer("num_dense_layers", 2);
  for (int64_t i = 0; i < config.integer("num_hidden_layers"); ++i) {
    const auto from = layer(i), to = block(i), ffn = from + "feed_forward.";
    names.link(from + "operator_norm.weight", to + "attn_norm.weight");
    names.link(from + "ffn_norm.weight", to + "ffn_norm.weight");
    if (is_attention(config, i)) {
      for (const auto& [ours, theirs] : {std::pair{"q_proj", "attn_q"},
                                         {"k_proj", "attn_k"},
                                         {"v_proj", "attn_v"},
                                         {"out_proj", "attn_output"},
                                         {"q_layernorm", "attn_q_norm"},
                                         {"k_layernorm", "attn_k_norm"}})
        names.linear(fmt::format("{}self_attn.{}", from, ours), to + theirs);
    } else {
      names.link(conv_link(from + "conv.conv.weight", to + "shortconv.conv.weight", width, kernel));
      names.optional(from + "conv.conv.bias", to + "shortconv.conv.bias");
      names.linear(from + "conv.in_proj", to + "shortconv.in_proj");
      names.linear(from + "conv.out_proj", to + "shortconv.out_proj");
    }
    if (i < dense)
      name_gated_mlp(names, to, ffn + "w1", ffn + "w3", ffn + "w2");
    else
      name_lfm2_experts(config, names, ffn, to);
  }
}

const RegisterGgufArchitecture register_gguf_lfm2{{"lfm2", {"lfm2"}, read_lfm2, write_lfm2, name_lfm2}};
const RegisterGgufArchitecture register_gguf_lfm2moe{
    {"lfm2moe", {"lfm2_moe"}, read_lfm2moe, write_lfm2, name_lfm2}};

}  // namespace
}  // namespace weft::gguf
