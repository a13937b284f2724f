// LFM2: gated short convolutions and attention, with MLPs or experts. Liquid AI 2025.
#include <algorithm>

#include "io/pretrained/architectures/moe.h"
#include "io/pretrained/architectures/rope_config.h"
#include "io/pretrained/architectures/short_convolution.h"

namespace weft {
namespace {

constexpr double kLfmWeightEps = 1e-6;  // added to the sum of the chosen experts' weights
constexpr MlpNames kLfmMlp{.gate = "w1", .up = "w3", .down = "w2"};

// The width that the config's intermediate_size stands for.
int64_t lfm2_hidden(const ConfigReader& config) {
  auto hidden = config.integer({"block_ff_dim", "intermediate_size"}, 12288);
  const auto multiplier = config.number("block_ffn_dim_multiplier", 1.0);
  const auto unit = config.integer("block_multiple_of", 256);
  if (!config.flag("block_auto_adjust_ff_dim", true)) return hidden;
  hidden = 2 * hidden / 3;
  hidden = static_cast<int64_t>(multiplier * static_cast<double>(hidden));
  return (hidden + unit - 1) / unit * unit;
}

// layer_types, or full_attn_idxs; without either, attention in every layer.
std::vector<std::string> lfm2_layer_types(const ConfigReader& config, int64_t layers) {
  auto types = config.texts("layer_types");
  const bool listed = config.has("full_attn_idxs");
  const auto places = config.integers("full_attn_idxs");
  for (const auto& type : types)
    config.need(type == "conv" || type == "full_attention", "layer_types", "expected conv or full_attention");
  if (!types.empty()) return types;
  for (int64_t i = 0; i < layers; ++i) {
    const bool attends = !listed || std::find(places.begin(), places.end(), i) != places.end();
    types.push_back(attends ? "full_attention" : "conv");
  }
  return types;
}

struct LfmSizes {
  int64_t width, heads, kv_heads, head_dim;
  double eps;
  ShortConvolution conv;
};

LfmSizes read_lfm2_sizes(const ConfigReader& config, int64_t width_by_default) {
  LfmSizes s{};
  s.width = config.integer("hidden_size", width_by_default);
  s.heads = config.integer("num_attention_heads", 32);
  s.kv_heads = config.integer("num_key_value_heads", 8);
  s.head_dim = config.integer("head_dim", s.width / s.heads);
  s.eps = config.number("norm_eps", 1e-5);
  s.conv = read_short_convolution(config, s.width, 3);
  return s;
}

// Embedding, final norm and head; the config's tie_embedding is an older name.
void take_lfm_model(const ConfigReader& config, const TensorNames& tensors, Blueprint& out, const LfmSizes& s,
                    int64_t vocab_by_default) {
  out.model.vocab = config.integer("vocab_size", vocab_by_default);
  out.model.width = s.width;
  out.model.norm_eps = s.eps;
  out.model.tie =
      !tensors.has("lm_head.weight", !config.flag({"tie_embedding", "tie_word_embeddings"}, true));
  out.take("embedding.weight", "model.embed_tokens.weight");
  out.take("norm.weight", "model.embedding_norm.weight");
  if (!out.model.tie) out.take("head.weight", "lm_head.weight");
}

// One layer of LFM2 without the parameters of its channel mixer; returns its prefix.
std::string add_lfm2_layer(Blueprint& out, const LfmSizes& s, const RopeSettings& rope, bool attends,
                           const Node& ffn, const std::string& from) {
  std::string to;
  if (attends) {
    auto layer = fields("mixer", "attention", "heads", s.heads, "kv_heads", s.kv_heads, "head_dim",
                        s.head_dim, "qk_norm", true, "norm_eps", s.eps, "ffn", ffn);
    rope.set(layer);
    to = out.add_layer(std::move(layer));
    const auto attention = from + "self_attn.";
    for (const auto& [ours, theirs] : {std::pair{"q", "q_proj"},
                                       {"k", "k_proj"},
                                       {"v", "v_proj"},
                                       {"out", "out_proj"},
                                       {"q_norm", "q_layernorm"},
                                       {"k_norm", "k_layernorm"}})
      take_linear(out, to + "mixer." + ours, attention + theirs);
  } else {
    to = out.add_layer(short_convolution_layer(fields("norm_eps", s.eps), s.conv, ffn));
    take_short_convolution(out, to + "mixer.", from + "conv.", s.conv);
  }
  out.take(to + "mixer_norm.weight", from + "operator_norm.weight");
  out.take(to + "ffn_norm.weight", from + "ffn_norm.weight");
  return to;
}

void describe_lfm2(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto s = read_lfm2_sizes(config, 2560);
  take_lfm_model(config, tensors, out, s, 65536);
  const auto rope = read_rope(config, s.head_dim, {.theta = 1e6, .positions = 128000});
  const auto ffn = fields("mlp", fields("hidden", lfm2_hidden(config)));
  const auto layers = config.integer("num_hidden_layers", 32);
  const auto types = lfm2_layer_types(config, layers);
  for (int64_t i = 0; i < layers; ++i) {
    const auto from = fmt::format("model.layers.{}.", i);
    const auto to = add_lfm2_layer(out, s, rope, types.at(static_cast<size_t>(i)) != "conv", ffn, from);
    take_mlp(out, to + "ffn.", from + "feed_forward.", false, kLfmMlp);
  }
}

void take_lfm2_experts(Blueprint& out, const TensorNames& tensors, const ExpertSizes& sizes, bool biased,
                       const std::string& ffn, const std::string& from) {
  take_linear(out, ffn + "router", from + "gate");
  if (biased) out.take(ffn + "choice_bias", from + "expert_bias");
  take_experts(out, tensors, ffn, from + "experts.", sizes, kLfmMlp);
}

void describe_lfm2_moe(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto s = read_lfm2_sizes(config, 2048);
  take_lfm_model(config, tensors, out, s, 65536);
  const auto rope = read_rope(config, s.head_dim, {.theta = 1e6, .positions = 128000});
  const auto dense = fields("mlp", fields("hidden", config.integer("intermediate_size", 7168)));
  const ExpertSizes sizes{.experts = config.integer("num_experts", 32),
                          .hidden = config.integer("moe_intermediate_size", 1792),
                          .width = s.width};
  const bool biased = config.flag("use_expert_bias", true);
  const auto moe =
      fields("moe", fields("hidden", sizes.hidden, "experts", sizes.experts, "top_k",
                           config.integer("num_experts_per_tok", 4), "router", "sigmoid", "choice_bias",
                           biased, "normalise", config.flag("norm_topk_prob", true), "normalise_eps",
                           kLfmWeightEps, "scale", config.number("routed_scaling_factor", 1.0)));
  const auto first = config.integer("num_dense_layers", 2);
  const auto layers = config.integer("num_hidden_layers", 32);
  const auto types = lfm2_layer_types(config, layers);
  for (int64_t i = 0; i < layers; ++i) {
    const auto from = fmt::format("model.layers.{}.", i);
    const auto to = add_lfm2_layer(out, s, rope, types.at(static_cast<size_t>(i)) != "conv",
                                   i < first ? dense : moe, from) +
                    "ffn.";
    if (i < first)
      take_mlp(out, to, from + "feed_forward.", false, kLfmMlp);
    else
      take_lfm2_experts(out, tensors, sizes, biased, to, from + "feed_forward.");
  }
}

// Keys of published files that transformers does not read: initialisation, and sizes under a second name.
const std::vector<std::string> kLfmUnread{"block_dim",
                                          "block_mlp_init_scale",
                                          "block_norm_eps",
                                          "block_out_init_scale",
                                          "block_use_swiglu",
                                          "block_use_xavier_init",
                                          "conv_dim",
                                          "conv_dim_out",
                                          "conv_use_xavier_init",
                                          "num_heads",
                                          "use_pos_enc"};
const RegisterArchitecture register_lfm2{{"lfm2", kLfmUnread, describe_lfm2}};
const RegisterArchitecture register_lfm2_moe{{"lfm2_moe", kLfmUnread, describe_lfm2_moe}};

}  // namespace
}  // namespace weft
