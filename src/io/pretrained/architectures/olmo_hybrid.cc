// OLMo Hybrid: Gated DeltaNet layers with norms before their branches, attention layers with norms behind them. Ai2 2025.
#include <algorithm>

#include "io/pretrained/architectures/delta_config.h"
#include "io/pretrained/architectures/rope_config.h"

namespace weft {
namespace {

constexpr double kOlmoReadOutEps = 1e-5;  // of the norm behind the linear layers, whatever rms_norm_eps is

struct OlmoHybrid {
  DeltaConfig delta;
  int64_t heads, kv_heads, head_dim, hidden;
  double eps;
  bool bias;
  RopeSettings rope;
  Node ffn;
};

OlmoHybrid read_olmo_hybrid(const ConfigReader& config) {
  OlmoHybrid o{};
  const auto width = config.integer("hidden_size", 3840);
  o.heads = config.integer("num_attention_heads", 30);
  o.kv_heads = config.integer("num_key_value_heads", o.heads);
  o.head_dim = width / o.heads;
  o.hidden = config.integer("intermediate_size", 11008);
  o.eps = config.number("rms_norm_eps", 1e-6);
  o.bias = config.flag("attention_bias", false);
  DeltaConfig defaults{.width = width, .heads = o.heads, .value_heads = o.heads};
  const auto key_heads = config.integer("linear_num_key_heads", o.heads);
  defaults.head_dim =
      static_cast<int64_t>(0.75 * static_cast<double>(width) / static_cast<double>(key_heads));
  defaults.value_dim = 2 * config.integer("linear_key_head_dim", defaults.head_dim);
  o.delta = read_delta(config, defaults);
  o.ffn = fields("mlp", fields("hidden", o.hidden, "activation", o.delta.activation));
  return o;
}

// q, k and v have convolutions of their own in the file, joined along the channels here. Where these are divided does
// not matter: transformers writes three parts of (nearly) equal size, whatever the sizes of q, k and v.
void take_olmo_conv(Blueprint& out, const TensorNames& tensors, const std::string& to,
                    const std::string& from, const DeltaConfig& delta) {
  const int64_t third = (delta.channels() + 2) / 3;
  std::vector<Piece> pieces;
  int64_t left = delta.channels();
  for (const char* part : {"q", "k", "v"}) {
    const auto name = fmt::format("{}{}_conv1d.weight", from, part);
    const auto rows = tensors.rows(name, std::min(third, left));
    left -= rows;
    pieces.push_back({.tensor = name, .shape = {rows, 1, delta.conv}});
  }
  out.take(to, std::move(pieces));
}

void add_olmo_linear(Blueprint& out, const TensorNames& tensors, const ConfigReader& config,
                     const OlmoHybrid& o, const std::string& from) {
  auto layer = delta_mixer(o.delta);
  set_fields(layer, "negative_eigenvalues", config.flag("linear_allow_neg_eigval", true), "out_norm_eps",
             kOlmoReadOutEps, "norm_eps", o.eps, "ffn", o.ffn);
  const auto to = out.add_layer(std::move(layer)), mixer = to + "mixer.", linear = from + "linear_attn.";
  out.take(mixer + "qkv.weight",
           {Piece{.tensor = linear + "q_proj.weight", .shape = {o.delta.keys(), o.delta.width}},
            Piece{.tensor = linear + "k_proj.weight", .shape = {o.delta.keys(), o.delta.width}},
            Piece{.tensor = linear + "v_proj.weight", .shape = {o.delta.values(), o.delta.width}}});
  for (const auto& [ours, theirs] : {std::pair{"gate", "g_proj"}, {"beta", "b_proj"}, {"decay", "a_proj"}})
    take_linear(out, mixer + ours, linear + theirs);
  take_olmo_conv(out, tensors, mixer + "conv.weight", linear, o.delta);
  take_delta_rest(out, mixer, linear, "o_norm", "o_proj");
  out.take(to + "mixer_norm.weight",
           tensors.pick({from + "attention_layer_norm.weight", from + "input_layernorm.weight"}));
  out.take(to + "ffn_norm.weight",
           tensors.pick({from + "feedforward_layer_norm.weight", from + "post_attention_layernorm.weight"}));
  take_mlp(out, to + "ffn.", from + "mlp.");
}

void add_olmo_attention(Blueprint& out, const TensorNames& tensors, const OlmoHybrid& o,
                        const std::string& from) {
  auto layer = fields("mixer", "attention", "heads", o.heads, "kv_heads", o.kv_heads, "head_dim", o.head_dim,
                      "qk_norm", true, "qk_norm_over", "all", "bias", o.bias, "output_bias", o.bias,
                      "norm_placement", "branch", "norm_eps", o.eps, "ffn", o.ffn);
  o.rope.set(layer);
  const auto to = out.add_layer(std::move(layer)), attention = from + "self_attn.";
  for (const auto& [ours, theirs] :
       {std::pair{"q", "q_proj"}, {"k", "k_proj"}, {"v", "v_proj"}, {"out", "o_proj"}})
    take_linear(out, to + "mixer." + ours, attention + theirs, o.bias);
  for (const char* norm : {"q_norm", "k_norm"}) take_linear(out, to + "mixer." + norm, attention + norm);
  out.take(to + "mixer_norm_post.weight",
           tensors.pick({from + "feedforward_layer_norm.weight", from + "post_attention_layernorm.weight"}));
  out.take(to + "ffn_norm_post.weight", from + "post_feedforward_layernorm.weight");
  take_mlp(out, to + "ffn.", from + "mlp.");
}

// Linear layers but for every fourth; the last one attends where none would.
std::vector<std::string> olmo_layer_types(const ConfigReader& config, int64_t layers) {
  auto types = read_linear_layer_types(config, layers, {"linear_attention", "full_attention"});
  if (!config.has("layer_types") && layers < 4) types.back() = "full_attention";
  return types;
}

// rope_theta: null, as published, means no rotary positions.
RopeSettings olmo_rope(const ConfigReader& config, int64_t head_dim) {
  auto rope = read_rope(config, head_dim, {.positions = 65536});
  const auto within = config.child({"rope_parameters", "rope_scaling"});
  if (within ? within->is_null("rope_theta") : config.is_null("rope_theta")) rope.theta = 0;
  return rope;
}

void describe_olmo_hybrid(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  auto o = read_olmo_hybrid(config);
  o.rope = olmo_rope(config, o.head_dim);
  out.model.vocab = config.integer("vocab_size", 100352);
  out.model.width = o.delta.width;
  out.model.norm_eps = o.eps;
  out.model.tie = !tensors.has("lm_head.weight", !config.flag("tie_word_embeddings", false));
  out.take("embedding.weight", "model.embed_tokens.weight");
  out.take("norm.weight", "model.norm.weight");
  if (!out.model.tie) out.take("head.weight", "lm_head.weight");
  const auto layers = config.integer("num_hidden_layers", 32);
  const auto types = olmo_layer_types(config, layers);
  for (int64_t i = 0; i < layers; ++i) {
    const auto from = fmt::format("model.layers.{}.", i);
    if (types[static_cast<size_t>(i)] == "linear_attention")
      add_olmo_linear(out, tensors, config, o, from);
    else
      add_olmo_attention(out, tensors, o, from);
  }
}

const RegisterArchitecture register_olmo_hybrid{{"olmo_hybrid",
                                                 {"linear_a_log_min", "linear_a_log_max", "linear_dt_min",
                                                  "linear_dt_max", "linear_dt_init_floor", "pretraining_tp"},
                                                 describe_olmo_hybrid}};

}  // namespace
}  // namespace weft
