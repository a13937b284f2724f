// "llama": Llama and Mistral, and with experts Mixtral.
#include "base/error.h"
#include "io/gguf/architectures/shared.h"

namespace weft::gguf {
namespace {

void read_llama(const GgufFile& file, nlohmann::json& config) {
  const auto& metadata = file.metadata();
  const auto experts = metadata.integer(".expert_count", 0);
  if (experts > 0)
    read_common(file, "mixtral", "MixtralForCausalLM", config);
  else
    read_common(file, "llama", "LlamaForCausalLM", config);
  read_heads(metadata, config);
  require(metadata.integer(".rope.dimension_count", config["head_dim"]) == config["head_dim"],
          "{}: differs from the head's {}", metadata.where(".rope.dimension_count"),
          config["head_dim"].get<int64_t>());
  read_rope(file, config);
  config["intermediate_size"] = metadata.integer(".feed_forward_length");
  config["hidden_act"] = "silu";
  if (experts > 0) {
    config["num_local_experts"] = experts;
    config["num_experts_per_tok"] = metadata.integer(".expert_used_count");
  } else {
    config["attention_bias"] = file.contains("blk.0.attn_q.bias");
    config["mlp_bias"] = file.contains("blk.0.ffn_up.bias");
  }
}

void write_llama(const ConfigReader& config, GgufMetadata& metadata) {
  write_common(config, metadata);
  write_heads(config, metadata);
  write_rope(config, metadata);
  metadata.set_u32(".feed_forward_length", config.integer("intermediate_size"));
  metadata.set_u32(".rope.dimension_count", head_dim_of(config));
  const bool mixtral = config.text("model_type") == "mixtral";
  config.need(!config.has("sliding_window"), "sliding_window",
              "the GGUF architecture llama has no window: expected null");
  if (!mixtral) return;
  metadata.set_u32(".expert_count", config.integer("num_local_experts"));
  metadata.set_u32(".expert_used_count", config.integer("num_experts_per_tok"));
}

void name_llama(const ConfigReader& config, GgufNames& names) {
  name_ends(names);
  name_rope_factors(config, names);
  const auto layers = config.integer("num_hidden_layers"), width = config.integer("hidden_size"),
             hidden = config.integer("intermediate_size"), experts = config.integer("num_local_experts", 0);
  for (int64_t i = 0; i < layers; ++i) {
    const auto from = layer(i), to = block(i);
    names.link(from + "input_layernorm.weight", to + "attn_norm.weight");
    names.link(from + "post_attention_layernorm.weight", to + "ffn_norm.weight");
    name_attention(config, names, from + "self_attn.", to, true);
    if (experts == 0) {
      name_gated_mlp(names, to, from + "mlp.gate_proj", from + "mlp.up_proj", from + "mlp.down_proj");
      continue;
    }
    names.link(from + "block_sparse_moe.gate.weight", to + "ffn_gate_inp.weight");
    for (int64_t e = 0; e < experts; ++e) {
      const auto expert = fmt::format("{}block_sparse_moe.experts.{}.", from, e);
      name_expert(names, expert + "w1.weight", to + "ffn_gate_exps.weight", e, experts, hidden, width);
      name_expert(names, expert + "w2.weight", to + "ffn_down_exps.weight", e, experts, width, hidden);
      name_expert(names, expert + "w3.weight", to + "ffn_up_exps.weight", e, experts, hidden, width);
    }
  }
}

const RegisterGgufArchitecture register_gguf_llama{
    {"llama", {"llama", "mistral", "mixtral"}, read_llama, write_llama, name_llama}};

}  // namespace
}  // namespace weft::gguf
