// Falcon-H1 (Zuo et al. 2025, arXiv:2507.22448): Mamba-2 and attention side by side in every layer, with fixed factors
// (muP multipliers) in many places.
#include <cmath>

#include "io/pretrained/architectures/mlp.h"
#include "io/pretrained/architectures/state_space.h"

namespace weft {
namespace {

std::vector<double> read_factors(const ConfigReader& config, const char* key, size_t count) {
  auto factors = config.numbers(key);
  if (factors.empty()) factors.assign(count, 1.0);
  config.need(factors.size() == count, key, fmt::format("expected {} numbers", count));
  return factors;
}

Node pair_of(double first, double second) {
  Node list = Node::list();
  list.push_back(node_of(first));
  list.push_back(node_of(second));
  return list;
}

Mamba2Shape read_ssm(const ConfigReader& config, int64_t width, double eps) {
  const auto expanded = config.integer("mamba_expand", 2) * width;
  auto shape = read_mamba2(config, read_nullable(config, "mamba_d_ssm", 1024, expanded), eps);
  shape.output_bias = config.flag("projectors_bias", false);
  const bool before = config.flag("mamba_norm_before_gate", true);
  shape.gate_norm = !config.flag("mamba_rms_norm", false) ? "none" : before ? "before" : "after";
  shape.scales = read_factors(config, "ssm_multipliers", 5);
  return shape;
}

AttentionShape read_attention_block(const ConfigReader& config, int64_t width) {
  auto shape = read_attention(config, width, 8);
  shape.bias = shape.output_bias = config.flag("attention_bias", false);
  // Keys times a factor: so are the scores.
  const double keys = config.number("key_multiplier", 1.0);
  config.need(keys > 0, "key_multiplier", "expected a number above 0");
  shape.scale = keys / std::sqrt(static_cast<double>(shape.head_dim));
  return shape;
}

void describe_falcon_h1(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const double eps = config.number("rms_norm_eps", 1e-5);
  const auto width = describe_frame(config, tensors, out, {"model.embed_tokens.weight"},
                                    "model.final_layernorm.weight", eps, false);
  out.model.embedding_scale = config.number("embedding_multiplier", 1.0);
  out.model.logit_scale = config.number("lm_head_multiplier", 1.0);
  const auto ssm = read_ssm(config, width, eps);
  const auto attention = read_attention_block(config, width);
  const auto rope = read_rope(config, attention.head_dim, {.positions = 8192});

  Node branches = Node::list();
  branches.push_back(ssm.mixer());
  branches.push_back(attention.mixer(rope));
  Node layer = fields("mixer", "parallel", "branches", branches, "norm_eps", eps);
  layer.set_child("input_scales", pair_of(config.number("ssm_in_multiplier", 1.0),
                                          config.number("attention_in_multiplier", 1.0)));
  layer.set_child("scales", pair_of(config.number("ssm_out_multiplier", 1.0),
                                    config.number("attention_out_multiplier", 1.0)));
  const auto mlp_factors = read_factors(config, "mlp_multipliers", 2);
  const bool mlp_bias = config.flag("mlp_bias", false);
  layer.set_child("ffn", fields("mlp", fields("hidden", config.integer("intermediate_size", 14336),
                                              "activation", ssm.activation, "bias", mlp_bias, "gate_scale",
                                              mlp_factors[0], "output_scale", mlp_factors[1])));

  const auto layers = config.integer("num_hidden_layers");
  for (int64_t i = 0; i < layers; ++i) {
    const auto to = out.add_layer(layer);
    const auto from = fmt::format("model.layers.{}.", i);
    out.take(to + "mixer_norm.weight", from + "input_layernorm.weight");
    out.take(to + "ffn_norm.weight", from + "pre_ff_layernorm.weight");
    ssm.take(out, to + "mixer.branch0.", from + "mamba.");
    attention.take(out, to + "mixer.branch1.", from + "self_attn.");
    take_mlp(out, to + "ffn.", from + "feed_forward.", mlp_bias);
    out.pass_over(from + "mamba.mup_vector");
  }
}

// The published checkpoints say some things twice.
const RegisterArchitecture register_falcon_h1{
    {"falcon_h1",
     {"mamba_chunk_size", "num_logits_to_keep", "layers_block_type", "layer_types", "attn_layer_indices",
      "mamba_use_mlp", "mlp_expansion_factor", "ffn_hidden_size", "use_mamba_kernels"},
     describe_falcon_h1}};

}  // namespace
}  // namespace weft
