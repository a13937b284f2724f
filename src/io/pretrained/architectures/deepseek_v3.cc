// DeepSeek-V3: multi-head latent attention, experts in groups. DeepSeek-AI 2024, arXiv:2412.19437.
#include "io/pretrained/architectures/latent.h"
#include "io/pretrained/architectures/moe.h"

namespace weft {
namespace {

void describe_deepseek_v3(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto layers = config.integer("num_hidden_layers");
  const double eps = config.number("rms_norm_eps", 1e-6);
  describe_frame(config, tensors, "embed_tokens", eps, true, layers, 1, out);
  config.need(config.text("scoring_func", "sigmoid") == "sigmoid", "scoring_func", "expected sigmoid");
  config.need(config.text("topk_method", "noaux_tc") == "noaux_tc", "topk_method", "expected noaux_tc");
  config.need(config.integer("moe_layer_freq", 1) == 1, "moe_layer_freq", "expected 1");

  LatentConfig attention;
  attention.read(config);
  const auto rope = read_rope(config, attention.rope_head_dim, {.positions = 4096});
  const bool interleaved = config.flag("rope_interleave", !config.is_null("rope_interleave"));
  GroupedExperts experts;
  experts.read(config);
  const auto sparse = read_sparse_layers(config, layers, 3);
  const auto activation = read_activation(config, "hidden_act", "silu");
  const auto hidden = config.integer("intermediate_size");

  for (int64_t i = 0; i < layers; ++i) {
    const bool mixture = sparse[static_cast<size_t>(i)];
    Node layer = attention.mixer(rope, interleaved);
    layer.set_child("norm_eps", node_of(eps));
    layer.set_child("ffn", mixture ? experts.node(activation)
                                   : fields("mlp", fields("hidden", hidden, "activation", activation)));
    const auto to = out.add_layer(std::move(layer)), from = fmt::format("model.layers.{}.", i);
    out.take(to + "mixer_norm.weight", from + "input_layernorm.weight");
    out.take(to + "ffn_norm.weight", from + "post_attention_layernorm.weight");
    attention.take(out, to + "mixer.", from + "self_attn.", "o_proj");
    if (mixture)
      take_grouped_experts(out, tensors, to + "ffn.", from + "mlp.", experts, out.model.width);
    else
      take_mlp(out, to + "ffn.", from + "mlp.");
    out.pass_over(from + "self_attn.rotary_emb.inv_freq");
  }
}

const RegisterArchitecture register_deepseek_v3{
    {"deepseek_v3", {"pretraining_tp", "ep_size", "aux_loss_alpha", "seq_aux"}, describe_deepseek_v3}};

}  // namespace
}  // namespace weft
