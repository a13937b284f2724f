// Ling 3: Kimi Delta Attention with a bounded decay, and latent attention with a gate for each head. inclusionAI 2026,
// Ling-3.0; Kimi Delta Attention: arXiv:2510.26692.
#include "base/error.h"
#include "io/pretrained/architectures/delta_attention.h"
#include "io/pretrained/architectures/latent.h"
#include "io/pretrained/architectures/moe.h"

namespace weft {
namespace {

std::vector<bool> bailing_full_layers(const ConfigReader& config, int64_t layers) {
  const auto group = config.integer("layer_group_size", 6);
  require(group >= 1, "{}: expected at least 1", config.where("layer_group_size"));
  const auto types = config.texts("layer_types");
  require(types.empty() || static_cast<int64_t>(types.size()) == layers, "{}: {} types for {} layers",
          config.where("layer_types"), types.size(), layers);
  std::vector<bool> full;
  for (int64_t i = 0; i < layers; ++i)
    full.push_back(types.empty() ? (i + 1) % group == 0 : types[static_cast<size_t>(i)] == "full_attention");
  return full;
}

DeltaAttention bailing_delta_attention(const ConfigReader& config) {
  DeltaAttention delta;
  delta.low_rank = false;
  // Files that transformers wrote have the first spellings; there head_dim is that of the rotated keys.
  delta.heads = config.integer("linear_num_heads", config.integer("num_attention_heads", 32));
  delta.head_dim = config.integer("linear_head_dim", config.integer("head_dim", 128));
  delta.conv = config.integer("linear_conv_kernel_dim", config.integer("short_conv_kernel_size", 4));
  const double bound = config.number("kda_lower_bound", -5.0);
  if (!config.flag("kda_safe_gate", true)) return delta;
  config.need(bound < 0, "kda_lower_bound", "expected a number below 0");
  delta.decay_bound = bound;
  return delta;
}

void describe_bailing_hybrid(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto layers = config.integer("num_hidden_layers");
  const double eps = config.number("rms_norm_eps", 1e-6);
  const bool plain = tensors.has("model.embed_tokens.weight", false);
  describe_frame(config, tensors, plain ? "embed_tokens" : "word_embeddings", eps, false, layers, 1, out);
  config.need(config.flag("rope_interleave", true), "rope_interleave", "expected true");

  LatentConfig latent{.heads = 32, .query_latent = 0};
  latent.read(config);
  const auto rope = read_rope(config, latent.rope_head_dim,
                              {.theta = 6e6, .positions = config.integer("model_max_length", 262144)});
  const auto delta = bailing_delta_attention(config);
  const auto full = bailing_full_layers(config, layers);
  GroupedExperts experts{.experts = 512, .hidden = 768};
  experts.read(config);
  const auto sparse = read_sparse_layers(config, layers, 2);
  const auto activation = read_activation(config, "hidden_act", "silu");
  const auto hidden = config.integer("intermediate_size");

  for (int64_t i = 0; i < layers; ++i) {
    const bool attends = full[static_cast<size_t>(i)], mixture = sparse[static_cast<size_t>(i)];
    Node layer = attends ? latent.mixer(rope, true) : delta.mixer(config, activation);
    if (attends) layer.set_child("output_gate", node_of(true));
    layer.set_child("norm_eps", node_of(eps));
    layer.set_child("ffn", mixture ? experts.node(activation)
                                   : fields("mlp", fields("hidden", hidden, "activation", activation)));
    const auto to = out.add_layer(std::move(layer)), from = fmt::format("model.layers.{}.", i);
    out.take(to + "mixer_norm.weight", from + "input_layernorm.weight");
    out.take(to + "ffn_norm.weight", from + "post_attention_layernorm.weight");
    const bool renamed = tensors.has(from + "self_attn.g_proj.weight", false);
    const auto block = from + (renamed ? "self_attn." : "attention.");
    const std::string output = tensors.has(block + "o_proj.weight", false) ? "o_proj" : "dense";
    if (attends) {
      latent.take(out, to + "mixer.", block, output);
      take_linear(out, to + "mixer.gate", block + "g_proj");
    } else {
      delta.take(out, tensors, to + "mixer.", block, {delta.heads}, output, out.model.width);
    }
    if (mixture)
      take_grouped_experts(out, tensors, to + "ffn.", from + "mlp.", experts, out.model.width, {},
                           "gate.expert_bias");
    else
      take_mlp(out, to + "ffn.", from + "mlp.");
  }
}

const RegisterArchitecture register_bailing_hybrid{
    {"bailing_hybrid", {"pretraining_tp", "mtp_loss_scaling_factor"}, describe_bailing_hybrid}};

}  // namespace
}  // namespace weft
