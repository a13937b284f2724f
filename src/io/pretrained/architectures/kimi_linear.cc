// Kimi Linear: Kimi Delta Attention, and latent attention without rotary positions. Kimi Team 2025, arXiv:2510.26692.
#include "base/error.h"
#include "io/pretrained/architectures/delta_attention.h"
#include "io/pretrained/architectures/latent.h"
#include "io/pretrained/architectures/moe.h"

namespace weft {
namespace {

// Which layers have full attention. Published configs list them in linear_attn_config, counted from 1.
std::vector<bool> kimi_full_layers(const ConfigReader& config, const std::optional<ConfigReader>& linear,
                                   int64_t layers) {
  std::vector<bool> full;
  for (int64_t i = 0; i < layers; ++i) full.push_back(i > 0 && i % 4 == 0);
  if (linear && linear->has("full_attn_layers") && linear->has("kda_layers")) {
    full.assign(full.size(), false);
    for (const int64_t layer : linear->integers("full_attn_layers"))
      if (layer >= 1 && layer <= layers) full[static_cast<size_t>(layer - 1)] = true;
  }
  const auto types = config.texts("layer_types");
  require(types.empty() || static_cast<int64_t>(types.size()) == layers, "{}: {} types for {} layers",
          config.where("layer_types"), types.size(), layers);
  for (size_t i = 0; i < types.size(); ++i) full[i] = types[i] == "full_attention";
  return full;
}

// Dense MLPs and mixtures are called mlp or block_sparse_moe.
std::string kimi_block(const TensorNames& tensors, const std::string& from, const std::string& tensor) {
  const auto found = tensors.pick({from + "block_sparse_moe." + tensor, from + "mlp." + tensor});
  return found.substr(0, found.size() - tensor.size());
}

void describe_kimi_linear(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto layers = config.integer("num_hidden_layers");
  const double eps = config.number("rms_norm_eps", 1e-5);
  describe_frame(config, tensors, "embed_tokens", eps, false, layers, 0, out);
  config.need(config.text("moe_router_activation_func", "sigmoid") == "sigmoid", "moe_router_activation_func",
              "expected sigmoid");
  config.need(config.integer("moe_layer_freq", 1) == 1, "moe_layer_freq", "expected 1");
  config.need(config.flag("mla_use_nope", true), "mla_use_nope", "expected true");

  LatentConfig latent{.heads = 32, .query_latent = 0};
  latent.read(config);
  DeltaAttention delta{config.integer("linear_num_heads", 32), config.integer("linear_head_dim", 128),
                       config.integer("linear_conv_kernel_dim", 4)};
  const auto linear = config.child("linear_attn_config");
  if (linear) {
    linear->ignore({"full_attn_layers", "kda_layers"});
    delta.heads = linear->integer("num_heads", delta.heads);
    delta.head_dim = linear->integer("head_dim", delta.head_dim);
    delta.conv = linear->integer("short_conv_kernel_size", delta.conv);
  }
  const auto full = kimi_full_layers(config, linear, layers);
  GroupedExperts experts{.hidden = 1024, .groups = 1, .top_groups = 1, .scale = 2.446};
  experts.read(config);
  const auto sparse = read_sparse_layers(config, layers, 1);
  const auto activation = read_activation(config, "hidden_act", "silu");
  const auto hidden = config.integer("intermediate_size");

  for (int64_t i = 0; i < layers; ++i) {
    const bool attends = full[static_cast<size_t>(i)], mixture = sparse[static_cast<size_t>(i)];
    Node layer = attends ? latent.mixer({}, false) : delta.mixer(config, activation);
    layer.set_child("norm_eps", node_of(eps));
    layer.set_child("ffn", mixture ? experts.node(activation)
                                   : fields("mlp", fields("hidden", hidden, "activation", activation)));
    const auto to = out.add_layer(std::move(layer)), from = fmt::format("model.layers.{}.", i);
    out.take(to + "mixer_norm.weight", from + "input_layernorm.weight");
    out.take(to + "ffn_norm.weight", from + "post_attention_layernorm.weight");
    if (attends)
      latent.take(out, to + "mixer.", from + "self_attn.", "o_proj");
    else
      delta.take(out, tensors, to + "mixer.", from + "self_attn.", {1, 1, delta.heads, 1}, "o_proj",
                 out.model.width);
    if (mixture) {
      const auto block = kimi_block(tensors, from, "gate.weight");
      const bool spelled_out = tensors.has(block + "experts.0.gate_proj.weight", false);
      take_grouped_experts(out, tensors, to + "ffn.", block, experts, out.model.width,
                           spelled_out ? MlpNames{} : MlpNames{"w1", "w3", "w2"});
    } else {
      take_mlp(out, to + "ffn.", kimi_block(tensors, from, "gate_proj.weight"));
    }
  }
}

const RegisterArchitecture register_kimi_linear{
    {"kimi_linear",
     {"pretraining_tp", "model_max_length", "rope_theta", "rope_scaling", "rope_parameters",
      "use_grouped_topk", "topk_method", "ep_size"},
     describe_kimi_linear}};

}  // namespace
}  // namespace weft
