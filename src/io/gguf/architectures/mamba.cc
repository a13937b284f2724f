// "mamba" (Mamba and Falcon Mamba) and "mamba2".
#include "base/error.h"
#include "io/gguf/architectures/shared.h"

namespace weft::gguf {
namespace {

constexpr const char* kEmbeddings = "backbone.embeddings.weight";
constexpr const char* kFinalNorm = "backbone.norm_f.weight";

void read_ssm_common(const GgufFile& file, const char* model_type, const char* class_name,
                     nlohmann::json& config) {
  const auto& metadata = file.metadata();
  read_common(file, model_type, class_name, config);
  config["layer_norm_epsilon"] = config["rms_norm_eps"];
  config.erase("rms_norm_eps");
  config.erase("max_position_embeddings");
  config["conv_kernel"] = metadata.integer(".ssm.conv_kernel");
  config["state_size"] = metadata.integer(".ssm.state_size");
  config["use_bias"] = file.contains("blk.0.ssm_in.bias");
  config["use_conv_bias"] = file.contains("blk.0.ssm_conv1d.bias");
  config["hidden_act"] = "silu";
}

int64_t expansion(const GgufMetadata& metadata) {
  const auto inner = metadata.integer(".ssm.inner_size"), width = metadata.integer(".embedding_length");
  require(width > 0 && inner % width == 0, "{}: {} is no multiple of the width {}",
          metadata.where(".ssm.inner_size"), inner, width);
  return inner / width;
}

// Falcon Mamba norms dt, B and C with an eps of its own, which the format does not record: it is that of all released
// models.
void read_mamba1(const GgufFile& file, nlohmann::json& config) {
  const auto& metadata = file.metadata();
  const bool falcon = metadata.flag(".ssm.dt_b_c_rms", false);
  if (falcon)
    read_ssm_common(file, "falcon_mamba", "FalconMambaForCausalLM", config);
  else
    read_ssm_common(file, "mamba", "MambaForCausalLM", config);
  if (falcon) config["mixer_rms_eps"] = 1e-6;
  config["expand"] = expansion(metadata);
  config["intermediate_size"] = metadata.integer(".ssm.inner_size");
  config["time_step_rank"] = metadata.integer(".ssm.time_step_rank");
}

void write_ssm_common(const ConfigReader& config, GgufMetadata& metadata) {
  write_common(config, metadata);
  metadata.set_u32(".feed_forward_length", 0);
  metadata.set_u32(".attention.head_count", 0);
  metadata.set_f32(".attention.layer_norm_rms_epsilon", config.number("layer_norm_epsilon", 1e-5));
}

int64_t mamba1_inner(const ConfigReader& config) {
  return config.integer("intermediate_size", config.integer("expand", 2) * config.integer("hidden_size"));
}

void write_mamba1(const ConfigReader& config, GgufMetadata& metadata) {
  write_ssm_common(config, metadata);
  const bool falcon = config.text("model_type") == "falcon_mamba";
  config.need(!config.flag("use_bias", false), "use_bias", "GGUF has no name for it: expected false");
  if (falcon)
    config.need(config.number("mixer_rms_eps", 1e-6) == 1e-6, "mixer_rms_eps",
                "GGUF does not record it: expected 1e-6");
  const auto width = config.integer("hidden_size");
  const bool automatic = config.has("time_step_rank") ? false : true;
  metadata.set_u32(".ssm.conv_kernel", config.integer("conv_kernel", 4));
  metadata.set_u32(".ssm.inner_size", mamba1_inner(config));
  metadata.set_u32(".ssm.state_size", config.integer("state_size", 16));
  metadata.set_u32(".ssm.time_step_rank", automatic ? (width + 15) / 16 : config.integer("time_step_rank"));
  metadata.set_flag(".ssm.dt_b_c_rms", falcon);
}

void name_mamba1(const ConfigReader& config, GgufNames& names) {
  name_ends(names, kEmbeddings, kFinalNorm);
  for (int64_t i = 0; i < config.integer("num_hidden_layers"); ++i) {
    const auto from = fmt::format("backbone.layers.{}.", i), to = block(i);
    names.link(from + "norm.weight", to + "attn_norm.weight");
    name_mamba(names, from + "mixer.", to, mamba1_inner(config), config.integer("conv_kernel", 4));
  }
}

void read_mamba2_model(const GgufFile& file, nlohmann::json& config) {
  const auto sizes = read_mamba2(file.metadata());
  read_ssm_common(file, "mamba2", "Mamba2ForCausalLM", config);
  require(sizes.heads > 0 && sizes.inner % sizes.heads == 0, "{}: {} heads do not divide the width {}",
          file.metadata().where(".ssm.time_step_rank"), sizes.heads, sizes.inner);
  config["expand"] = expansion(file.metadata());
  config["num_heads"] = sizes.heads;
  config["head_dim"] = sizes.inner / sizes.heads;
  config["n_groups"] = sizes.groups;
  config["rms_norm"] = file.contains("blk.0.ssm_norm.weight");
}

Mamba2Sizes mamba2_sizes(const ConfigReader& config) {
  return {.heads = config.integer("num_heads", 128),
          .inner = config.integer("expand", 2) * config.integer("hidden_size"),
          .groups = config.integer("n_groups", 8),
          .state = config.integer("state_size", 128),
          .kernel = config.integer("conv_kernel", 4)};
}

void write_mamba2_model(const ConfigReader& config, GgufMetadata& metadata) {
  write_ssm_common(config, metadata);
  config.need(!config.flag("use_bias", false), "use_bias", "GGUF has no name for it: expected false");
  write_mamba2(mamba2_sizes(config), metadata);
}

void name_mamba2_model(const ConfigReader& config, GgufNames& names) {
  name_ends(names, kEmbeddings, kFinalNorm);
  for (int64_t i = 0; i < config.integer("num_hidden_layers"); ++i) {
    const auto from = fmt::format("backbone.layers.{}.", i), to = block(i);
    names.link(from + "norm.weight", to + "attn_norm.weight");
    name_mamba2(names, from + "mixer.", to, mamba2_sizes(config));
  }
}

const RegisterGgufArchitecture register_gguf_mamba{
    {"mamba", {"mamba", "falcon_mamba"}, read_mamba1, write_mamba1, name_mamba1}};
const RegisterGgufArchitecture register_gguf_mamba2{
    {"mamba2", {"mamba2"}, read_mamba2_model, write_mamba2_model, name_mamba2_model}};

}  // namespace
}  // namespace weft::gguf
