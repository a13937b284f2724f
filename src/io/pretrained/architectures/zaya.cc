// ZAYA1 (Zyphra 2025, arXiv:2511.17127): compressed convolutional attention, experts behind a router that remembers the
// layer before, scales and biases on both sides of every residual sum.
#include "io/pretrained/architectures/mlp.h"
#include "io/pretrained/architectures/rope_config.h"

namespace weft {
namespace {

struct Zaya {
  int64_t width, heads, kv_heads, head_dim, conv, head_conv, window, experts, hidden, router;
  double eps;
  bool bias;
  std::string activation;
  RopeSettings full, sliding;
  int64_t channels() const { return (heads + kv_heads) * head_dim; }
};

RopeSettings zaya_rope(const ConfigReader& config, int64_t head_dim, const char* type, double theta) {
  const double partial = config.has("rope_parameters") ? 1.0 : 0.5;
  return read_rope(
      config, head_dim,
      {.theta = theta, .partial = partial, .positions = 131072, .layer_types = {"hybrid", "hybrid_sliding"}},
      type);
}

Zaya read_zaya(const ConfigReader& config) {
  Zaya z{};
  z.width = config.integer("hidden_size", 2048);
  z.heads = config.integer("num_attention_heads", 8);
  z.kv_heads = config.integer("num_key_value_heads", 2);
  z.head_dim = config.integer("head_dim", 128);
  z.conv = config.integer("cca_time0", 2);
  z.head_conv = config.integer("cca_time1", 2);
  z.window = config.integer("sliding_window", 0);
  z.experts = config.integer("num_experts", 16);
  z.hidden = config.integer("moe_intermediate_size", 2048);
  z.router = config.integer("router_hidden_size", 256);
  z.eps = config.number("rms_norm_eps", 1e-5);
  z.bias = config.flag("attention_bias", false);
  z.activation = read_activation(config, "hidden_act", "silu");
  config.need(config.integer("num_experts_per_tok", 1) == 1, "num_experts_per_tok", "expected 1");
  if (const auto rope = config.child("rope_parameters")) rope->ignore({"rope_type"});
  z.full = zaya_rope(config, z.head_dim, "hybrid", 5e6);
  z.sliding = zaya_rope(config, z.head_dim, "hybrid_sliding", 1e4);
  return z;
}

// One of the file's pairs of scalings: of the stream and of what is added to it.
void take_zaya_scaling(Blueprint& out, const std::string& to, const std::string& from) {
  for (const auto& [ours, theirs] : {std::pair{"branch", "hidden_states"}, {"skip", "residual"}})
    for (const char* what : {"scale", "bias"})
      out.take(fmt::format("{}{}.{}", to, ours, what), fmt::format("{}{}_{}", from, theirs, what));
}

void add_zaya_attention(Blueprint& out, const Zaya& z, const std::string& from, bool sliding) {
  auto layer =
      fields("mixer", "cca", "heads", z.heads, "kv_heads", z.kv_heads, "head_dim", z.head_dim, "conv", z.conv,
             "head_conv", z.head_conv, "window", sliding ? z.window : 0, "bias", z.bias, "norm_eps", z.eps);
  (sliding ? z.sliding : z.full).set(layer);
  const auto to = out.add_layer(std::move(layer)), mixer = to + "mixer.", qkv = from + "self_attn.qkv_proj.";
  for (const auto& [ours, theirs] :
       {std::pair{"q", "q_proj"}, {"k", "k_proj"}, {"v", "v_proj_current"}, {"v_delayed", "v_proj_delayed"}})
    take_linear(out, mixer + ours, qkv + theirs, z.bias);
  take_linear(out, mixer + "out", from + "self_attn.o_proj", z.bias);
  out.take(mixer + "conv.weight",
           Piece{.tensor = qkv + "conv_qk_depthwise.weight", .shape = {z.channels(), 1, z.conv}});
  out.take(mixer + "conv.bias", qkv + "conv_qk_depthwise.bias");
  take_linear(out, mixer + "head_conv", qkv + "conv_qk_grouped", true);
  out.take(mixer + "temperature", from + "self_attn.qk_norm.temp");
  out.take(to + "mixer_norm.weight", from + "input_layernorm.weight");
  take_zaya_scaling(out, to + "mixer_residual.", from + "post_attention_residual_scale.");
}

void add_zaya_experts(Blueprint& out, const Zaya& z, const std::string& from, int64_t block) {
  const bool carry = block > 0;
  auto layer = fields("mixer", "skip_experts", "experts", z.experts, "hidden", z.hidden, "router", z.router,
                      "carry", carry, "activation", z.activation, "norm_eps", z.eps, "export",
                      fields("router", fmt::format("router{}", block)));
  if (carry) set_fields(layer, "import", fields("router", fmt::format("router{}", block - 1)));
  const auto to = out.add_layer(std::move(layer)), router = to + "mixer.router.", gate = from + "mlp.gate.";
  take_linear(out, router + "down", gate + "down_proj", true);
  take_linear(out, router + "first", gate + "router_mlp.fc1", true);
  take_linear(out, router + "second", gate + "router_mlp.fc2", true);
  take_linear(out, router + "out", gate + "router_mlp.out_proj");
  take_linear(out, router + "norm", gate + "router_mlp.norm");
  if (carry) out.take(router + "carry", gate + "router_states_scale");
  out.take(router + "balance", gate + "balancing_biases");
  out.take(to + "mixer.up", from + "mlp.experts.gate_up_proj");
  out.take(to + "mixer.down", from + "mlp.experts.down_proj");
  out.take(to + "mixer_norm.weight", from + "post_attention_layernorm.weight");
  take_zaya_scaling(out, to + "mixer_residual.", from + "post_mlp_residual_scale.");
}

void describe_zaya(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto z = read_zaya(config);
  const auto blocks = config.integer("num_hidden_layers", 40);
  const auto types = config.texts("layer_types");
  config.need(types.empty() || static_cast<int64_t>(types.size()) == blocks, "layer_types",
              "expected one for each of num_hidden_layers");
  out.model.vocab = config.integer("vocab_size", 262272);
  out.model.width = z.width;
  out.model.norm_eps = z.eps;
  out.model.fp32_residual = true;
  out.model.residual = fields("scaled", Node::map());
  out.model.head_bias = config.flag("lm_head_bias", false);
  const bool own = tensors.has("lm_head.weight", !config.flag("tie_word_embeddings", true));
  out.model.tie = !own && !out.model.head_bias;
  out.take("embedding.weight", "model.embed_tokens.weight");
  out.take("norm.weight", "model.norm.weight");
  out.take("stack.residual.input.scale", "model.input_hidden_states_scale");
  out.take("stack.residual.input.bias", "model.input_hidden_states_bias");
  if (!out.model.tie) out.take("head.weight", own ? "lm_head.weight" : "model.embed_tokens.weight");
  if (out.model.head_bias) out.take("head.bias", "lm_head.bias");
  for (int64_t i = 0; i < blocks; ++i) {
    const auto type = types.empty() ? "hybrid" : types[static_cast<size_t>(i)];
    config.need(type == "hybrid" || type == "hybrid_sliding", "layer_types",
                "expected hybrid or hybrid_sliding");
    config.need(type == "hybrid" || z.window > 0, "sliding_window",
                "expected a number beside hybrid_sliding layers");
    const auto from = fmt::format("model.layers.{}.", i);
    add_zaya_attention(out, z, from, type == "hybrid_sliding");
    add_zaya_experts(out, z, from, i);
  }
}

const RegisterArchitecture register_zaya{{"zaya", {}, describe_zaya}};

}  // namespace
}  // namespace weft
