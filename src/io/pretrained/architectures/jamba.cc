// Jamba (Lieber et al. 2024, arXiv:2403.19887): Mamba with normed maps, attention without positions every so many layers,
// an MLP or a mixture of experts in each.
#include "io/pretrained/architectures/moe.h"
#include "io/pretrained/architectures/state_space.h"

namespace weft {
namespace {

MambaShape read_jamba_mamba(const ConfigReader& config, int64_t width, double eps) {
  MambaShape shape;
  shape.inner = config.integer("mamba_expand", 2) * width;
  shape.states = config.integer("mamba_d_state", 16);
  shape.conv = config.integer("mamba_d_conv", 4);
  shape.rank = read_auto(config, "mamba_dt_rank", (width + 15) / 16);
  shape.bias = config.flag("mamba_proj_bias", false);
  shape.conv_bias = config.flag("mamba_conv_bias", true);
  shape.activation = read_activation(config, "hidden_act", "silu");
  shape.map_norm = "rms";
  shape.map_norm_eps = eps;
  return shape;
}

// Whether a layer is one of those that come every `period` layers, from `offset` on.
struct Every {
  int64_t period, offset;
  bool operator()(int64_t layer) const { return layer % period == offset; }
};

Every read_every(const ConfigReader& config, const char* period, const char* offset, Every absent) {
  const Every every{config.integer(period, absent.period), config.integer(offset, absent.offset)};
  config.need(every.period > 0, period, "expected a number above 0");
  return every;
}

void describe_jamba(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const double eps = config.number("rms_norm_eps", 1e-6);
  const auto width = describe_frame(config, tensors, out, {"model.embed_tokens.weight"},
                                    "model.final_layernorm.weight", eps, false);
  const auto mamba = read_jamba_mamba(config, width, eps);
  const auto attention = read_attention(config, width, 8);
  const auto attends = read_every(config, "attn_layer_period", "attn_layer_offset", {8, 4});
  const auto mixes = read_every(config, "expert_layer_period", "expert_layer_offset", {2, 1});
  const auto hidden = config.integer("intermediate_size", 14336);
  const auto experts = config.integer({"num_experts", "num_local_experts"}, 16);
  const auto top_k = config.integer("num_experts_per_tok", 2);
  const Node mlp = fields("mlp", fields("hidden", hidden, "activation", mamba.activation));
  const Node moe = fields("moe", fields("hidden", hidden, "experts", experts, "top_k", top_k, "activation",
                                        mamba.activation, "router", "softmax", "normalise", false));

  const auto layers = config.integer("num_hidden_layers", 32);
  for (int64_t i = 0; i < layers; ++i) {
    const bool sparse = experts > 1 && mixes(i);
    Node layer = attends(i) ? attention.mixer() : mamba.mixer();
    layer.set_child("norm_eps", node_of(eps));
    layer.set_child("ffn", sparse ? moe : mlp);
    const auto to = out.add_layer(std::move(layer));
    const auto from = fmt::format("model.layers.{}.", i), ffn = from + "feed_forward.";
    out.take(to + "mixer_norm.weight", from + "input_layernorm.weight");
    out.take(to + "ffn_norm.weight", from + "pre_ff_layernorm.weight");
    if (attends(i))
      attention.take(out, to + "mixer.", from + "self_attn.");
    else
      mamba.take(out, to + "mixer.", from + "mamba.");
    if (sparse) {
      out.take(to + "ffn.router.weight", ffn + "router.weight");
      take_experts(out, tensors, to + "ffn.", ffn + "experts.", {experts, hidden, width});
    } else {
      take_mlp(out, to + "ffn.", ffn);
    }
  }
}

const RegisterArchitecture register_jamba{
    {"jamba",
     {"use_mamba_kernels", "use_mambapy", "use_associative_scan", "num_logits_to_keep",
      "calc_logits_for_entire_prompt", "mamba_inner_layernorms", "sliding_window", "n_ctx",
      "layers_block_type", "layer_types", "layers_num_experts"},
     describe_jamba}};

}  // namespace
}  // namespace weft
