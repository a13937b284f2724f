// "qwen2" (biases on q, k, v) and "qwen3" (norms over the heads of q and k).
#include "io/gguf/architectures/shared.h"

namespace weft::gguf {
namespace {

void read_qwen(const GgufFile& file, nlohmann::json& config, const char* model_type, const char* class_name) {
  const auto& metadata = file.metadata();
  read_common(file, model_type, class_name, config);
  read_heads(metadata, config);
  read_rope(file, config);
  config["intermediate_size"] = metadata.integer(".feed_forward_length");
  config["hidden_act"] = "silu";
}

void read_qwen2(const GgufFile& file, nlohmann::json& config) {
  read_qwen(file, config, "qwen2", "Qwen2ForCausalLM");
  if (config["head_dim"] ==
      config["hidden_size"].get<int64_t>() / config["num_attention_heads"].get<int64_t>())
    config.erase("head_dim");
}

void read_qwen3(const GgufFile& file, nlohmann::json& config) {
  read_qwen(file, config, "qwen3", "Qwen3ForCausalLM");
  config["attention_bias"] = file.contains("blk.0.attn_q.bias");
}

void write_qwen(const ConfigReader& config, GgufMetadata& metadata) {
  write_common(config, metadata);
  write_heads(config, metadata);
  write_rope(config, metadata);
  metadata.set_u32(".feed_forward_length", config.integer("intermediate_size"));
  config.need(!config.flag("use_sliding_window", false), "use_sliding_window",
              "GGUF has no window for it: expected false");
}

void name_qwen(const ConfigReader& config, GgufNames& names) {
  name_ends(names);
  const auto layers = config.integer("num_hidden_layers");
  for (int64_t i = 0; i < layers; ++i) {
    const auto from = layer(i), to = block(i);
    names.link(from + "input_layernorm.weight", to + "attn_norm.weight");
    names.link(from + "post_attention_layernorm.weight", to + "ffn_norm.weight");
    name_attention(config, names, from + "self_attn.", to, false);
    names.optional(from + "self_attn.q_norm.weight", to + "attn_q_norm.weight");
    names.optional(from + "self_attn.k_norm.weight", to + "attn_k_norm.weight");
    name_gated_mlp(names, to, from + "mlp.gate_proj", from + "mlp.up_proj", from + "mlp.down_proj");
  }
}

const RegisterGgufArchitecture register_gguf_qwen2{{"qwen2", {"qwen2"}, read_qwen2, write_qwen, name_qwen}};
const RegisterGgufArchitecture register_gguf_qwen3{{"qwen3", {"qwen3"}, read_qwen3, write_qwen, name_qwen}};

}  // namespace
}  // namespace weft::gguf
