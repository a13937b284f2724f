// Nemotron-H (NVIDIA 2025, arXiv:2504.03624) and Nemotron 3 (NVIDIA 2025, arXiv:2512.20856): every layer is one branch:
// Mamba-2, attention without positions, an MLP or a mixture of experts, both without gates.
#include "io/pretrained/architectures/moe.h"
#include "io/pretrained/architectures/state_space.h"

namespace weft {
namespace {

constexpr MlpNames kUngated{.gate = ""};

std::vector<std::string> read_nemotron_layers(const ConfigReader& config) {
  const ConfigKey key = {"layers_block_type", "layer_types"};
  const char* pattern_key = "hybrid_override_pattern";
  auto types = read_layer_types(config, key);
  const auto pattern = config.text(pattern_key, "");
  if (!types.empty()) return types;
  if (pattern.empty()) return {"linear_attention", "moe", "full_attention", "mlp"};
  for (const char letter : pattern) {
    const char* const type = letter == 'M'   ? "linear_attention"
                             : letter == 'E' ? "moe"
                             : letter == '*' ? "full_attention"
                             : letter == '-' ? "mlp"
                                             : nullptr;
    config.need(type != nullptr, pattern_key, "expected the letters M, E, * and -");
    types.push_back(type);
  }
  return types;
}

Mamba2Shape read_nemotron_mamba(const ConfigReader& config, double eps) {
  Mamba2Shape shape;
  shape.heads = config.integer("mamba_num_heads", 128);
  shape.head_dim = config.integer("mamba_head_dim", 64);
  shape.states = config.integer("ssm_state_size", 128);
  shape.groups = config.integer({"mamba_n_groups", "n_groups"}, 8);
  shape.conv = config.integer({"mamba_d_conv", "conv_kernel"}, 4);
  shape.conv_bias = config.flag({"mamba_conv_bias", "use_conv_bias"}, true);
  shape.bias = shape.output_bias = config.flag("use_bias", false);
  shape.activation = read_activation(config, "mamba_hidden_act", "silu");
  shape.gate_norm_eps = eps;
  shape.dt_min = config.number({"mamba_dt_min", "time_step_min"}, 0.001);
  return shape;
}

struct NemotronExperts {
  int64_t experts, hidden, shared, latent, top_k, groups, top_groups;
  bool normalise, bias;
  double scale;
  std::string activation;

  explicit NemotronExperts(const ConfigReader& config)
      : experts(config.integer({"n_routed_experts", "num_local_experts"}, 8)),
        hidden(config.integer("moe_intermediate_size", 7688)),
        shared(config.integer("moe_shared_expert_intermediate_size", 7688)),
        latent(config.integer("moe_latent_size", 0)),
        top_k(config.integer("num_experts_per_tok", 2)),
        groups(config.integer("n_group", 1)),
        top_groups(config.integer("topk_group", 1)),
        normalise(config.flag("norm_topk_prob", true)),
        bias(config.flag("mlp_bias", false)),
        scale(config.number("routed_scaling_factor", 1.0)),
        activation(read_activation(config, "mlp_hidden_act", "relu2")) {}

  Node ffn() const {
    return fields(
        "moe", fields("hidden", hidden, "experts", experts, "top_k", top_k, "activation", activation, "gated",
                      false, "router", "sigmoid", "choice_bias", true, "normalise", normalise,
                      "normalise_eps", 1e-20, "scale", scale, "groups", groups, "top_groups", top_groups,
                      "shared", shared, "shared_bias", bias, "latent", latent, "latent_bias", bias));
  }
  void take(Blueprint& out, const TensorNames& tensors, const std::string& to, const std::string& from,
            int64_t width) const {
    out.take(to + "router.weight", from + "gate.weight");
    out.take(to + "choice_bias", from + "gate.e_score_correction_bias");
    take_experts(out, tensors, to, from + "experts.", {experts, hidden, latent > 0 ? latent : width},
                 kUngated);
    take_mlp(out, to + "shared.", from + "shared_experts.", bias, kUngated);
    if (latent == 0) return;
    take_linear(out, to + "latent_in", from + "fc1_latent_proj", bias);
    take_linear(out, to + "latent_out", from + "fc2_latent_proj", bias);
  }
};

void describe_nemotron_h(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const double eps = config.number({"layer_norm_epsilon", "rms_norm_eps"}, 1e-5);
  const auto width =
      describe_frame(config, tensors, out,
                     {"backbone.embeddings.weight", "backbone.embedding.weight", "model.embeddings.weight"},
                     tensors.pick({"backbone.norm_f.weight", "model.norm_f.weight"}), eps, false);
  if (out.model.tie) {  // it has a head of its own, whatever the config says
    out.model.tie = false;
    out.take("head.weight", "lm_head.weight");
  }
  out.model.fp32_residual = config.flag("residual_in_fp32", false);
  const auto mamba = read_nemotron_mamba(config, eps);
  AttentionShape attention;
  attention.heads = config.integer("num_attention_heads", 32);
  attention.kv_heads = read_nullable(config, "num_key_value_heads", 8, attention.heads);
  attention.head_dim = config.integer({"head_dim", "attention_head_dim"}, 128);
  const NemotronExperts experts(config);
  const Node mlp = fields("mlp", fields("hidden", config.integer("intermediate_size", 21504), "activation",
                                        experts.activation, "gated", false, "bias", experts.bias));

  const auto types = read_nemotron_layers(config);
  for (size_t i = 0; i < types.size(); ++i) {
    const auto& type = types[i];
    const bool mixes = type == "linear_attention" || type == "full_attention";
    config.need(mixes || type == "mlp" || type == "moe", {"layers_block_type", "layer_types"},
                "expected linear_attention, full_attention, mlp and moe");
    Node layer = type == "linear_attention" ? mamba.mixer() : mixes ? attention.mixer() : Node::map();
    if (!mixes) layer.set_child("ffn", type == "mlp" ? mlp : experts.ffn());
    layer.set_child("norm_eps", node_of(eps));
    const auto to = out.add_layer(std::move(layer));
    const auto from = fmt::format("backbone.layers.{}.", i);
    out.take(to + (mixes ? "mixer_norm.weight" : "ffn_norm.weight"), from + "norm.weight");
    if (type == "linear_attention") mamba.take(out, to + "mixer.", from + "mixer.");
    if (type == "full_attention") attention.take(out, to + "mixer.", from + "mixer.");
    if (type == "mlp") take_mlp(out, to + "ffn.", from + "mixer.", experts.bias, kUngated);
    if (type == "moe") experts.take(out, tensors, to + "ffn.", from + "mixer.", width);
  }
  out.pass_over("mtp.");
}

// Initialisation, sizes that follow from others, layers that predict more tokens, and what changes nothing.
const RegisterArchitecture register_nemotron_h{{"nemotron_h",
                                                {"num_hidden_layers",
                                                 "attention_bias",
                                                 "sliding_window",
                                                 "expand",
                                                 "mamba_expand",
                                                 "mamba_proj_bias",
                                                 "time_step_limit",
                                                 "mamba_dt_limit",
                                                 "time_step_max",
                                                 "mamba_dt_max",
                                                 "time_step_floor",
                                                 "mamba_dt_init_floor",
                                                 "chunk_size",
                                                 "mamba_chunk_size",
                                                 "mamba_ssm_cache_dtype",
                                                 "use_mamba_kernels",
                                                 "num_logits_to_keep",
                                                 "moe_shared_expert_overlap",
                                                 "n_shared_experts",
                                                 "num_nextn_predict_layers",
                                                 "mtp_layers_block_type",
                                                 "mtp_hybrid_override_pattern",
                                                 "hidden_dropout",
                                                 "rescale_prenorm_residual",
                                                 "time_step_rank",
                                                 "norm_eps",
                                                 "rope_theta",
                                                 "rope_scaling",
                                                 "rope_parameters",
                                                 "partial_rotary_factor",
                                                 "head_dim",
                                                 "attention_head_dim",
                                                 "rms_norm_eps"},
                                                describe_nemotron_h}};

}  // namespace
}  // namespace weft
