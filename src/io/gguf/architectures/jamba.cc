// "jamba": Mamba layers and attention without positions, every other feed-forward with experts.
#include "io/gguf/architectures/shared.h"

namespace weft::gguf {
namespace {

std::vector<bool> layers_with(const GgufFile& file, int64_t layers, const char* tensor) {
  std::vector<bool> found;
  for (int64_t i = 0; i < layers; ++i) found.push_back(file.contains(block(i) + tensor));
  return found;
}

void read_jamba(const GgufFile& file, nlohmann::json& config) {
  const auto& metadata = file.metadata();
  read_common(file, "jamba", "JambaForCausalLM", config);
  read_heads(metadata, config);
  config.erase("head_dim");
  const auto layers = metadata.integer(".block_count");
  const auto attention = every_nth(layers_with(file, layers, "attn_q.weight"), file.path() + ": attention");
  const auto experts = every_nth(layers_with(file, layers, "ffn_gate_inp.weight"), file.path() + ": experts");
  config["attn_layer_offset"] = attention.begin;
  config["attn_layer_period"] = attention.step;
  config["expert_layer_offset"] = experts.begin;
  config["expert_layer_period"] = experts.step;
  config["num_experts"] = std::max<int64_t>(metadata.integer(".expert_count", 1), 1);
  config["num_experts_per_tok"] = std::max<int64_t>(metadata.integer(".expert_used_count", 1), 1);
  config["intermediate_size"] = metadata.integer(".feed_forward_length");
  config["mamba_d_conv"] = metadata.integer(".ssm.conv_kernel");
  config["mamba_d_state"] = metadata.integer(".ssm.state_size");
  config["mamba_dt_rank"] = metadata.integer(".ssm.time_step_rank");
  config["mamba_expand"] = metadata.integer(".ssm.inner_size") / metadata.integer(".embedding_length");
  config["mamba_conv_bias"] = file.contains(block(attention.begin == 0 ? 1 : 0) + "ssm_conv1d.bias");
  config["mamba_proj_bias"] = false;
  config["hidden_act"] = "silu";
}

struct JambaPattern {
  int64_t attention_offset, attention_period, expert_offset, expert_period, experts;
  explicit JambaPattern(const ConfigReader& config)
      : attention_offset(config.integer("attn_layer_offset", 4)),
        attention_period(config.integer("attn_layer_period", 8)),
        expert_offset(config.integer("expert_layer_offset", 1)),
        expert_period(config.integer("expert_layer_period", 2)),
        experts(config.integer("num_experts", 16)) {}
  bool attention(int64_t i) const {
    return i >= attention_offset && (i - attention_offset) % attention_period == 0;
  }
  bool sparse(int64_t i) const {
    return experts > 1 && i >= expert_offset && (i - expert_offset) % expert_period == 0;
  }
};

int64_t jamba_inner(const ConfigReader& config) {
  return config.integer("mamba_expand", 2) * config.integer("hidden_size");
}

void write_jamba(const ConfigReader& config, GgufMetadata& metadata) {
  write_common(config, metadata);
  const auto width = config.integer("hidden_size"), heads = config.integer("num_attention_heads"),
             kv_heads = config.integer("num_key_value_heads", 8);
  const JambaPattern pattern(config);
  std::vector<int64_t> kv;
  for (int64_t i = 0; i < config.integer("num_hidden_layers"); ++i)
    kv.push_back(pattern.attention(i) ? kv_heads : 0);
  config.need(!config.flag("mamba_proj_bias", false), "mamba_proj_bias",
              "GGUF has no name for it: expected false");
  metadata.set_u32(".attention.head_count", heads);
  metadata.set_i32s(".attention.head_count_kv", kv);
  metadata.set_u32(".feed_forward_length", config.integer("intermediate_size"));
  metadata.set_u32(".ssm.conv_kernel", config.integer("mamba_d_conv", 4));
  metadata.set_u32(".ssm.inner_size", jamba_inner(config));
  metadata.set_u32(".ssm.state_size", config.integer("mamba_d_state", 16));
  const bool given = config.has("mamba_dt_rank");
  metadata.set_u32(".ssm.time_step_rank", given ? config.integer("mamba_dt_rank") : (width + 15) / 16);
  metadata.set_u32(".expert_count", pattern.experts);
  metadata.set_u32(".expert_used_count", config.integer("num_experts_per_tok", 2));
}

void name_jamba(const ConfigReader& config, GgufNames& names) {
  name_ends(names, "model.embed_tokens.weight", "model.final_layernorm.weight");
  const auto width = config.integer("hidden_size"), hidden = config.integer("intermediate_size");
  const JambaPattern pattern(config);
  for (int64_t i = 0; i < config.integer("num_hidden_layers"); ++i) {
    const auto from = layer(i), to = block(i), ffn = from + "feed_forward.";
    names.link(from + "input_layernorm.weight", to + "attn_norm.weight");
    names.link(from + "pre_ff_layernorm.weight", to + "ffn_norm.weight");
    if (pattern.attention(i)) {
      name_attention(config, names, from + "self_attn.", to, false);
    } else {
      name_mamba(names, from + "mamba.", to, jamba_inner(config), config.integer("mamba_d_conv", 4));
      for (const char* part : {"dt", "b", "c"})
        names.link(fmt::format("{}mamba.{}_layernorm.weight", from, part),
                   fmt::format("{}ssm_{}_norm.weight", to, part));
    }
    if (!pattern.sparse(i)) {
      name_gated_mlp(names, to, ffn + "gate_proj", ffn + "up_proj", ffn + "down_proj");
      continue;
    }
    names.link(ffn + "router.weight", to + "ffn_gate_inp.weight");
    for (int64_t e = 0; e < pattern.experts; ++e) {
      const auto expert = fmt::format("{}experts.{}.", ffn, e);
      name_expert(names, expert + "gate_proj.weight", to + "ffn_gate_exps.weight", e, pattern.experts, hidden,
                  width);
      name_expert(names, expert + "up_proj.weight", to + "ffn_up_exps.weight", e, pattern.experts, hidden,
                  width);
      name_expert(names, expert + "down_proj.weight", to + "ffn_down_exps.weight", e, pattern.experts, width,
                  hidden);
    }
  }
}

const RegisterGgufArchitecture register_gguf_jamba{{"jamba", {"jamba"}, read_jamba, write_jamba, name_jamba}};

}  // namespace
}  // namespace weft::gguf
