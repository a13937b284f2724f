// "falcon-h1": attention and Mamba-2 side by side. The file has all multipliers inside the weights; it is read as a
// model whose multipliers are 1.
#include <algorithm>

#include "io/gguf/architectures/shared.h"

namespace weft::gguf {
namespace {

void read_falcon_h1(const GgufFile& file, nlohmann::json& config) {
  const auto& metadata = file.metadata();
  const auto sizes = read_mamba2(metadata);
  read_common(file, "falcon_h1", "FalconH1ForCausalLM", config);
  read_heads(metadata, config);
  read_rope(file, config, 1e11);
  config["intermediate_size"] = metadata.integer(".feed_forward_length");
  config["mamba_d_ssm"] = sizes.inner;
  config["mamba_n_heads"] = sizes.heads;
  config["mamba_d_head"] = sizes.inner / std::max<int64_t>(sizes.heads, 1);
  config["mamba_n_groups"] = sizes.groups;
  config["mamba_d_state"] = sizes.state;
  config["mamba_d_conv"] = sizes.kernel;
  config["mamba_conv_bias"] = file.contains("blk.0.ssm_conv1d.bias");
  config["mamba_rms_norm"] = file.contains("blk.0.ssm_norm.weight");
  config["mamba_norm_before_gate"] = false;  // as llama.cpp computes it
  for (const char* none : {"attention_bias", "mlp_bias", "mamba_proj_bias", "projectors_bias"})
    config[none] = false;
  for (const char* multiplier :
       {"attention_in_multiplier", "attention_out_multiplier", "embedding_multiplier", "key_multiplier",
        "lm_head_multiplier", "ssm_in_multiplier", "ssm_out_multiplier"})
    config[multiplier] = 1.0;
  config["mlp_multipliers"] = {1.0, 1.0};
  config["ssm_multipliers"] = {1.0, 1.0, 1.0, 1.0, 1.0};
  config["hidden_act"] = "silu";
}

Mamba2Sizes falcon_sizes(const ConfigReader& config) {
  const auto expanded = config.integer("mamba_expand", 2) * config.integer("hidden_size");
  return {.heads = config.integer("mamba_n_heads", 128),
          .inner = config.integer("mamba_d_ssm", expanded),
          .groups = config.integer("mamba_n_groups", 1),
          .state = config.integer("mamba_d_state", 256),
          .kernel = config.integer("mamba_d_conv", 4)};
}

void write_falcon_h1(const ConfigReader& config, GgufMetadata& metadata) {
  write_common(config, metadata);
  write_heads(config, metadata);
  write_rope(config, metadata, 1e5);
  write_mamba2(falcon_sizes(config), metadata);
  metadata.set_u32(".feed_forward_length", config.integer("intermediate_size"));
  config.need(!config.flag("mamba_rms_norm", false) || !config.flag("mamba_norm_before_gate", true),
              "mamba_norm_before_gate", "GGUF expects false where there is a norm");
  for (const char* bias : {"attention_bias", "mlp_bias", "mamba_proj_bias", "projectors_bias"})
    config.need(!config.flag(bias, false), bias,
                "the GGUF architecture falcon-h1 has no biases: expected false");
}

// What the converter multiplies each tensor by; 1 in configs that were made from GGUF files.
class Multipliers {
 public:
  explicit Multipliers(const ConfigReader& config) : config_(config) {}
  double of(const char* key) const { return config_.number(key, 1.0); }
  double mlp(size_t i) const { return item("mlp_multipliers", i); }
  // Of the rows of in_proj: z, x, B, C, dt.
  std::vector<double> in_proj(const Mamba2Sizes& s) const {
    std::vector<double> rows;
    const int64_t counts[] = {s.inner, s.inner, s.groups * s.state, s.groups * s.state, s.heads};
    for (size_t part = 0; part < 5; ++part)
      rows.insert(rows.end(), static_cast<size_t>(counts[part]),
                  of("ssm_in_multiplier") * item("ssm_multipliers", part));
    return rows;
  }

 private:
  double item(const char* key, size_t i) const {
    const auto list = config_.numbers(key);
    return i < list.size() ? list[i] : 1.0;
  }
  const ConfigReader& config_;
};

void name_falcon_h1(const ConfigReader& config, GgufNames& names) {
  const Multipliers multipliers(config);
  const auto sizes = falcon_sizes(config);
  const auto scaled = [&](const std::string& tensor, const std::string& gguf, std::vector<double> factors) {
    names.link({.tensor = tensor + ".weight", .pieces = {{gguf + ".weight"}}, .factors = std::move(factors)});
  };
  scaled("model.embed_tokens", "token_embd", {multipliers.of("embedding_multiplier")});
  names.link("model.final_layernorm.weight", "output_norm.weight");
  if (names.has("lm_head.weight", "output.weight"))
    scaled("lm_head", "output", {multipliers.of("lm_head_multiplier")});
  for (int64_t i = 0; i < config.integer("num_hidden_layers"); ++i) {
    const auto from = layer(i), to = block(i), attention = from + "self_attn.", mamba = from + "mamba.";
    const auto in = multipliers.of("attention_in_multiplier");
    names.link(from + "input_layernorm.weight", to + "attn_norm.weight");
    // The converter leaves the ending out of this one.
    names.link(from + "pre_ff_layernorm.weight", names.has("", to + "ffn_norm.weight") && names.reading()
                                                     ? to + "ffn_norm.weight"
                                                     : to + "ffn_norm");
    scaled(attention + "q_proj", to + "attn_q", {in});
    scaled(attention + "k_proj", to + "attn_k", {in * multipliers.of("key_multiplier")});
    scaled(attention + "v_proj", to + "attn_v", {in});
    scaled(attention + "o_proj", to + "attn_output", {multipliers.of("attention_out_multiplier")});
    scaled(from + "feed_forward.gate_proj", to + "ffn_gate", {multipliers.mlp(0)});
    scaled(from + "feed_forward.down_proj", to + "ffn_down", {multipliers.mlp(1)});
    names.link(from + "feed_forward.up_proj.weight", to + "ffn_up.weight");
    name_mamba2_inside(names, mamba, to, sizes);
    scaled(mamba + "in_proj", to + "ssm_in", multipliers.in_proj(sizes));
    scaled(mamba + "out_proj", to + "ssm_out", {multipliers.of("ssm_out_multiplier")});
  }
}

const RegisterGgufArchitecture register_gguf_falcon_h1{
    {"falcon-h1", {"falcon_h1"}, read_falcon_h1, write_falcon_h1, name_falcon_h1}};

}  // namespace
}  // namespace weft::gguf
