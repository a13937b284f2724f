// Granite 4 (IBM 2025): Mamba-2 or attention, then experts and an MLP that all tokens share; fixed factors on embedding,
// branches, scores and logits.
#include "io/pretrained/architectures/moe.h"
#include "io/pretrained/architectures/state_space.h"

namespace weft {
namespace {

struct GraniteExperts {
  int64_t experts = 0, hidden = 0, shared = 0, top_k = 0;
  std::string activation;

  Node ffn() const {
    if (experts == 0) return fields("mlp", fields("hidden", shared, "activation", activation));
    return fields("moe", fields("hidden", hidden, "experts", experts, "top_k", top_k, "activation",
                                activation, "router", "softmax", "normalise", true, "shared", shared));
  }
  void take(Blueprint& out, const TensorNames& tensors, const std::string& to, const std::string& from,
            int64_t width) const {
    const auto moe = from + "block_sparse_moe.", mlp = from + "shared_mlp.";
    take_fused_mlp(out, experts == 0 ? to : to + "shared.", mlp + "input_linear.weight",
                   mlp + "output_linear.weight", shared, width);
    if (experts == 0) return;
    out.take(to + "router.weight", tensors.pick({moe + "router.layer.weight", moe + "router.weight"}));
    out.take(to + "up", tensors.pick({moe + "input_linear.weight", moe + "experts.gate_up_proj"}));
    out.take(to + "down", tensors.pick({moe + "output_linear.weight", moe + "experts.down_proj"}));
  }
};

void describe_granite_hybrid(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const double eps = config.number("rms_norm_eps", 1e-6);
  const auto width =
      describe_frame(config, tensors, out, {"model.embed_tokens.weight"}, "model.norm.weight", eps, false);
  out.model.embedding_scale = config.number("embedding_multiplier", 1.0);
  out.model.logit_scale = 1 / config.number("logits_scaling", 1.0);
  const double branches = config.number("residual_multiplier", 1.0);
  const auto mamba = read_mamba2(config, config.integer("mamba_expand", 2) * width, eps);
  auto attention = read_attention(config, width, 0);
  attention.bias = attention.output_bias = config.flag("attention_bias", false);
  attention.scale = config.number("attention_multiplier", 1.0);
  config.need(attention.scale > 0, "attention_multiplier", "expected a number above 0");
  const auto rope = read_rope(config, attention.head_dim);
  const bool rotates = config.text("position_embedding_type", "") == "rope";

  GraniteExperts ffn;
  ffn.experts = config.integer("num_local_experts", 8);
  ffn.top_k = config.integer("num_experts_per_tok", 2);
  ffn.hidden = config.integer("intermediate_size", 11008);
  ffn.shared = config.integer("shared_intermediate_size", 1024);
  ffn.activation = mamba.activation;

  const auto layers = config.integer("num_hidden_layers", 32);
  auto types = read_layer_types(config, {"layer_types", "layers_block_type"});
  if (types.empty()) types.assign(static_cast<size_t>(layers), "linear_attention");
  config.need(static_cast<int64_t>(types.size()) >= layers, "layer_types",
              fmt::format("expected {} types", layers));
  for (int64_t i = 0; i < layers; ++i) {
    const bool attends = types[static_cast<size_t>(i)] != "linear_attention";
    Node layer = attends ? attention.mixer(rotates ? rope : RopeSettings{}) : mamba.mixer();
    layer.set_child("norm_eps", node_of(eps));
    layer.set_child("residual_scale", node_of(branches));
    layer.set_child("ffn", ffn.ffn());
    const auto to = out.add_layer(std::move(layer));
    const auto from = fmt::format("model.layers.{}.", i);
    out.take(to + "mixer_norm.weight", from + "input_layernorm.weight");
    out.take(to + "ffn_norm.weight", from + "post_attention_layernorm.weight");
    if (attends)
      attention.take(out, to + "mixer.", from + "self_attn.");
    else
      mamba.take(out, to + "mixer.", from + "mamba.");
    ffn.take(out, tensors, to + "ffn.", from, width);
  }
}

const RegisterArchitecture register_granite_hybrid{
    {"granitemoehybrid",
     {"mamba_chunk_size", "num_logits_to_keep", "init_method", "normalization_function", "use_mamba_kernels"},
     describe_granite_hybrid}};

}  // namespace
}  // namespace weft
