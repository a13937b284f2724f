// Mamba (Gu and Dao 2023, arXiv:2312.00752), Falcon Mamba (Zuo et al. 2024, arXiv:2410.05355) and Mamba-2 (Dao and Gu
// 2024, arXiv:2405.21060): one mixer a layer, nothing else.
#include "io/pretrained/architectures/mlp.h"
#include "io/pretrained/architectures/state_space.h"

namespace weft {
namespace {

// Adds the layers, all alike; `take` says where the parameters of a mixer are.
void add_mixers(const ConfigReader& config, Blueprint& out, const Node& mixer, double eps,
                const std::function<void(const std::string& to, const std::string& from)>& take) {
  const auto layers = config.integer("num_hidden_layers");
  for (int64_t i = 0; i < layers; ++i) {
    Node layer = mixer;
    layer.set_child("norm_eps", node_of(eps));
    const auto to = out.add_layer(std::move(layer));
    const auto from = fmt::format("backbone.layers.{}.", i);
    out.take(to + "mixer_norm.weight", from + "norm.weight");
    take(to + "mixer.", from + "mixer.");
  }
}

// What all three say in the same words; returns eps.
double describe_backbone(const ConfigReader& config, const TensorNames& tensors, Blueprint& out, bool tied) {
  const double eps = config.number("layer_norm_epsilon", 1e-5);
  describe_frame(config, tensors, out, {"backbone.embeddings.weight", "backbone.embedding.weight"},
                 "backbone.norm_f.weight", eps, tied);
  out.model.fp32_residual = config.flag("residual_in_fp32", true);
  return eps;
}

MambaShape read_mamba(const ConfigReader& config, int64_t width) {
  MambaShape shape;
  shape.inner = config.integer("intermediate_size",
                               static_cast<int64_t>(config.number("expand", 2) * static_cast<double>(width)));
  shape.states = config.integer("state_size", 16);
  shape.conv = config.integer("conv_kernel", 4);
  shape.rank = read_auto(config, "time_step_rank", (width + 15) / 16);
  shape.bias = config.flag("use_bias", false);
  shape.conv_bias = config.flag("use_conv_bias", true);
  shape.activation = read_activation(config, "hidden_act", "silu");
  return shape;
}

void describe_mamba(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const double eps = describe_backbone(config, tensors, out, true);
  const auto shape = read_mamba(config, out.model.width);
  add_mixers(config, out, shape.mixer(), eps,
             [&](const auto& to, const auto& from) { shape.take(out, to, from); });
}

void describe_falcon_mamba(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const double eps = describe_backbone(config, tensors, out, true);
  auto shape = read_mamba(config, out.model.width);
  shape.map_norm = "unit";
  shape.map_norm_eps = config.number("mixer_rms_eps", 1e-6);
  add_mixers(config, out, shape.mixer(), eps,
             [&](const auto& to, const auto& from) { shape.take(out, to, from); });
}

void describe_mamba2(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const double eps = describe_backbone(config, tensors, out, false);
  Mamba2Shape shape;
  shape.heads = config.integer("num_heads", 128);
  shape.head_dim = config.integer("head_dim", 64);
  shape.states = config.integer("state_size", 128);
  shape.groups = config.integer("n_groups", 8);
  shape.conv = config.integer("conv_kernel", 4);
  shape.bias = shape.output_bias = config.flag("use_bias", false);
  shape.conv_bias = config.flag("use_conv_bias", true);
  shape.activation = read_activation(config, "hidden_act", "silu");
  shape.gate_norm_eps = eps;
  shape.read_limits(config);
  const double inner = config.number("expand", 2) * static_cast<double>(out.model.width);
  config.need(static_cast<int64_t>(inner) == shape.heads * shape.head_dim, "expand",
              fmt::format("num_heads times head_dim is {}, hidden_size times expand must be the same",
                          shape.heads * shape.head_dim));
  add_mixers(config, out, shape.mixer(), eps,
             [&](const auto& to, const auto& from) { shape.take(out, to, from); });
}

// Initialisation, choice of kernels, and what the first checkpoints say twice.
const std::vector<std::string> kMambaIrrelevant{"time_step_min",
                                                "time_step_max",
                                                "time_step_floor",
                                                "time_step_scale",
                                                "time_step_init_scheme",
                                                "time_step_rank",
                                                "use_mambapy",
                                                "use_associative_scan",
                                                "rescale_prenorm_residual",
                                                "intermediate_size",
                                                "use_falcon_mambapy",
                                                "chunk_size",
                                                "d_inner",
                                                "d_model",
                                                "n_layer",
                                                "fused_add_norm",
                                                "rms_norm",
                                                "ssm_cfg",
                                                "pad_vocab_size_multiple",
                                                "norm_before_gate",
                                                "residual_in_fp32",
                                                "layer_types"};

const RegisterArchitecture register_mamba{{"mamba", kMambaIrrelevant, describe_mamba}};
const RegisterArchitecture register_falcon_mamba{{"falcon_mamba", kMambaIrrelevant, describe_falcon_mamba}};
const RegisterArchitecture register_mamba2{{"mamba2", kMambaIrrelevant, describe_mamba2}};

}  // namespace
}  // namespace weft
