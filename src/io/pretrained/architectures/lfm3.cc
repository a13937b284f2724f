// LFM3: gated short convolutions, attention over all tokens and over a window, with a gate for each head and norms before
// and behind each branch. Liquid AI 2026.
#include "io/pretrained/architectures/rope_config.h"
#include "io/pretrained/architectures/short_convolution.h"

namespace weft {
namespace {

struct Lfm3 {
  int64_t width, heads, kv_heads, head_dim, window;
  double eps;
  bool bias, gated, sandwich;
  ShortConvolution conv;
  RopeSettings full, sliding;
  Node ffn;
};

// Without rope_parameters, whole heads turn slowly, half of their channels not at all, where all tokens are seen.
void read_lfm3_rope(const ConfigReader& config, Lfm3& m) {
  const bool given = config.has({"rope_parameters", "rope_scaling"});
  const auto read = [&](const char* type) {
    return read_rope(config, m.head_dim, {.theta = 1e6, .positions = 128000}, type);
  };
  m.full = read("full_attention");
  m.sliding = read("sliding_attention");
  if (given) return;
  m.full.theta = 1e6;
  m.full.scaling = fields("proportional", fields("share", 0.5));
  m.sliding.theta = 1e4;
}

Lfm3 read_lfm3(const ConfigReader& config) {
  Lfm3 m{};
  m.width = config.integer("hidden_size", 2048);
  m.heads = config.integer("num_attention_heads", 16);
  m.kv_heads = config.integer("num_key_value_heads", 4);
  m.head_dim = config.integer("head_dim", 128);
  m.window = config.integer("sliding_window", 256);
  m.eps = config.number({"norm_eps", "rms_norm_eps"}, 1e-5);
  m.bias = config.flag("attention_bias", false);
  m.gated = config.flag("use_attention_gate", true);
  m.sandwich = config.flag("use_sandwich_norm", true);
  m.conv = read_short_convolution(config, m.width, 7);
  m.ffn = fields("mlp", fields("hidden", config.integer("intermediate_size", 7680)));
  read_lfm3_rope(config, m);
  return m;
}

std::string add_lfm3_attention(Blueprint& out, const TensorNames& tensors, const Lfm3& m, bool slides,
                               Node layer, const std::string& from) {
  set_fields(layer, "mixer", "attention", "heads", m.heads, "kv_heads", m.kv_heads, "head_dim", m.head_dim,
             "qk_norm", true, "output_gate", m.gated, "output_gate_over", "head", "bias", m.bias,
             "output_bias", m.bias, "ffn", m.ffn);
  if (slides) set_fields(layer, "window", m.window);
  (slides ? m.sliding : m.full).set(layer);
  const auto to = out.add_layer(std::move(layer));
  for (const auto& [ours, theirs] :
       {std::pair{"q", "q_proj"}, {"k", "k_proj"}, {"v", "v_proj"}, {"out", "o_proj"}})
    take_linear(out, to + "mixer." + ours, from + theirs, m.bias);
  for (const char* norm : {"q_norm", "k_norm"}) take_linear(out, to + "mixer." + norm, from + norm);
  if (m.gated)
    out.take(to + "mixer.gate.weight", tensors.pick({from + "gate_proj.weight", from + "g_proj.weight"}));
  return to;
}

void add_lfm3_layer(Blueprint& out, const TensorNames& tensors, const Lfm3& m, const std::string& type,
                    const std::string& from) {
  const auto layer = fields("norm_eps", m.eps, "norm_placement", m.sandwich ? "sandwich" : "pre");
  std::string to;
  if (type == "conv") {
    to = out.add_layer(short_convolution_layer(layer, m.conv, m.ffn));
    take_short_convolution(out, to + "mixer.", from + "conv.", m.conv);
  } else {
    to = add_lfm3_attention(out, tensors, m, type == "sliding_attention", layer, from + "self_attn.");
  }
  take_mlp(out, to + "ffn.", from + "feed_forward.", false, {.gate = "w1", .up = "w3", .down = "w2"});
  out.take(to + "mixer_norm.weight", from + "operator_norm.weight");
  out.take(to + "ffn_norm.weight", from + "ffn_norm.weight");
  if (!m.sandwich) return;
  out.take(to + "mixer_norm_post.weight", from + "post_operator_norm.weight");
  out.take(to + "ffn_norm_post.weight", from + "post_ffn_norm.weight");
}

// Of every four layers one over all tokens and one over a window, which the first is not; the others are convolutions.
std::vector<std::string> lfm3_layer_types(const ConfigReader& config, int64_t layers) {
  auto types = config.texts("layer_types");
  if (types.empty())
    for (int64_t i = 0; i < layers; ++i)
      types.push_back(i % 4 == 2 ? "full_attention" : i % 4 == 0 && i > 0 ? "sliding_attention" : "conv");
  for (const auto& type : types)
    config.need(type == "conv" || type == "full_attention" || type == "sliding_attention", "layer_types",
                "expected conv, full_attention or sliding_attention");
  return types;
}

void describe_lfm3(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto m = read_lfm3(config);
  out.model.vocab = config.integer("vocab_size", 128000);
  out.model.width = m.width;
  out.model.norm_eps = m.eps;
  out.model.tie = !tensors.has("lm_head.weight", !config.flag("tie_word_embeddings", true));
  out.take("embedding.weight", "model.embed_tokens.weight");
  out.take("norm.weight", "model.embedding_norm.weight");
  if (!out.model.tie) out.take("head.weight", "lm_head.weight");
  const auto layers = config.integer("num_hidden_layers", 24);
  const auto types = lfm3_layer_types(config, layers);
  for (int64_t i = 0; i < layers; ++i)
    add_lfm3_layer(out, tensors, m, types.at(static_cast<size_t>(i)), fmt::format("model.layers.{}.", i));
}

const RegisterArchitecture register_lfm3{{"lfm3", {}, describe_lfm3}};

}  // namespace
}  // namespace weft
