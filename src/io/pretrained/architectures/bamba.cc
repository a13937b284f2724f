// Bamba (Chu et al. 2024, the IBM, Princeton, CMU and UIUC release): Mamba-2, attention in some layers, an MLP in each.
#include <algorithm>

#include "io/pretrained/architectures/mlp.h"
#include "io/pretrained/architectures/state_space.h"

namespace weft {
namespace {

void describe_bamba(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const double eps = config.number("rms_norm_eps", 1e-5);
  const auto width = describe_frame(config, tensors, out, {"model.embed_tokens.weight"},
                                    "model.final_layernorm.weight", eps, false);
  const auto mamba = read_mamba2(config, config.integer("mamba_expand", 2) * width, eps);
  auto attention = read_attention(config, width, 8);
  attention.bias = attention.output_bias = config.flag("attention_bias", false);
  // Half of a head is rotated, unless rope_parameters itself says otherwise.
  const auto rope =
      read_rope(config, attention.head_dim,
                {.partial = 0.5, .positions = 262144, .partial_key = std::initializer_list<const char*>{}});
  const bool mlp_bias = config.flag("mlp_bias", false);
  const Node ffn = fields("mlp", fields("hidden", config.integer("intermediate_size", 14336), "activation",
                                        mamba.activation, "bias", mlp_bias));
  const auto attends = config.integers("attn_layer_indices");

  const auto layers = config.integer("num_hidden_layers");
  for (int64_t i = 0; i < layers; ++i) {
    const bool attend = std::find(attends.begin(), attends.end(), i) != attends.end();
    Node layer = attend ? attention.mixer(rope) : mamba.mixer();
    layer.set_child("norm_eps", node_of(eps));
    layer.set_child("ffn", ffn);
    const auto to = out.add_layer(std::move(layer));
    const auto from = fmt::format("model.layers.{}.", i);
    out.take(to + "mixer_norm.weight", from + "input_layernorm.weight");
    out.take(to + "ffn_norm.weight", from + "pre_ff_layernorm.weight");
    if (attend)
      attention.take(out, to + "mixer.", from + "self_attn.");
    else
      mamba.take(out, to + "mixer.", from + "mamba.");
    take_mlp(out, to + "ffn.", from + "feed_forward.", mlp_bias);
  }
}

const RegisterArchitecture register_bamba{
    {"bamba",
     {"mamba_chunk_size", "num_logits_to_keep", "z_loss_coefficient", "partial_rotary_factor",
      "attn_rotary_emb", "layers_block_type", "layer_types", "use_mamba_kernels"},
     describe_bamba}};

}  // namespace
}  // namespace weft
