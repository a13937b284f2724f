// RecurrentGemma: RG-LRU blocks and windowed attention. Botev et al. 2024, arXiv:2404.07839; Griffin: De et al. 2024,
// arXiv:2402.19427.
#include <c10/util/BFloat16.h>

#include <cmath>

#include "io/pretrained/architectures/mlp.h"
#include "io/pretrained/architectures/rope_config.h"

namespace weft {
namespace {

struct GriffinSizes {
  int64_t width, heads, kv_heads, head_dim, inner, block, conv, hidden, window;
  RopeSettings rope;
  bool bias;
  std::string activation;
};

GriffinSizes read_griffin_sizes(const ConfigReader& config) {
  GriffinSizes s{};
  s.width = config.integer("hidden_size", 2560);
  s.heads = config.integer("num_attention_heads", 10);
  s.kv_heads = config.integer("num_key_value_heads", s.heads);
  s.head_dim = config.integer("head_dim", s.width / s.heads);
  s.inner = config.integer("lru_width", s.width);
  config.need(s.inner % s.heads == 0, "lru_width", fmt::format("expected a multiple of {} heads", s.heads));
  s.block = s.inner / s.heads;
  s.conv = config.integer("conv1d_width", 4);
  s.hidden = config.integer("intermediate_size", 3 * 2560) / 2;
  s.window = config.integer({"attention_window_size", "sliding_window"}, 2048);
  s.bias = config.flag("attention_bias", false);
  s.activation = read_activation(config, "hidden_activation", "gelu_pytorch_tanh");
  s.rope = read_rope(config, s.head_dim, {.theta = 10000, .partial = 0.5});
  config.need(s.rope.scaling.is_null(), "rope_parameters", "RecurrentGemma has the default rope_type only");
  return s;
}

// Rows of both gates, block by block: [recurrent | input], from tensors [blocks, in, out].
void take_griffin_gates(Blueprint& out, const std::string& mixer, const std::string& from,
                        const GriffinSizes& s) {
  std::vector<Piece> weights;
  for (int64_t block = 0; block < s.heads; ++block)
    for (const char* gate : {"recurrent_gate", "input_gate"})
      weights.push_back({.tensor = from + gate + "_weight",
                         .shape = {s.heads, s.block, s.block},
                         .rows = row_range(block * s.block, (block + 1) * s.block),
                         .transposed = true});
  out.take(mixer + "gates.weight", weights);
  out.take(mixer + "gates.bias", {Piece{.tensor = from + "recurrent_gate_bias", .shape = {s.heads, s.block}},
                                  Piece{.tensor = from + "input_gate_bias", .shape = {s.heads, s.block}}});
}

void take_griffin_block(Blueprint& out, const std::string& mixer, const std::string& from,
                        const GriffinSizes& s) {
  out.take(mixer + "in.weight", {Piece{.tensor = from + "linear_x.weight", .shape = {s.inner, s.width}},
                                 Piece{.tensor = from + "linear_y.weight", .shape = {s.inner, s.width}}});
  out.take(mixer + "in.bias", {Piece{.tensor = from + "linear_x.bias", .shape = {s.inner}},
                               Piece{.tensor = from + "linear_y.bias", .shape = {s.inner}}});
  out.take(mixer + "conv.weight", Piece{.tensor = from + "conv_1d.weight", .shape = {s.inner, 1, s.conv}});
  out.take(mixer + "conv.bias", from + "conv_1d.bias");
  take_griffin_gates(out, mixer, from + "rg_lru.", s);
  out.take(mixer + "lambda", from + "rg_lru.recurrent_param");
  take_linear(out, mixer + "out", from + "linear_out", true);
}

void describe_recurrent_gemma(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto s = read_griffin_sizes(config);
  const auto eps = config.number("rms_norm_eps", 1e-6);
  out.model.vocab = config.integer("vocab_size", 256000);
  out.model.width = s.width;
  out.model.norm = "rms_zero_centered";
  out.model.norm_eps = eps;
  out.model.embedding_scale = static_cast<float>(c10::BFloat16(std::sqrt(static_cast<float>(s.width))));
  out.model.logit_softcap = config.number("logits_soft_cap", 30.0);
  config.need(out.model.logit_softcap > 0, "logits_soft_cap", "expected a positive number");
  out.model.tie = !tensors.has("lm_head.weight", !config.flag("tie_word_embeddings", true));
  out.take("embedding.weight", "model.embed_tokens.weight");
  out.take("norm.weight", "model.final_norm.weight");
  if (!out.model.tie) out.take("head.weight", "lm_head.weight");

  const auto ffn = fields("mlp", fields("hidden", s.hidden, "activation", s.activation, "bias", true));
  const auto recurrent =
      fields("mixer", "rg_lru", "heads", s.heads, "inner", s.inner, "conv", s.conv, "activation",
             s.activation, "unit_start", true, "norm", "rms_zero_centered", "norm_eps", eps, "ffn", ffn);
  auto attention = fields("mixer", "attention", "heads", s.heads, "kv_heads", s.kv_heads, "head_dim",
                          s.head_dim, "window", s.window, "bias", s.bias, "output_bias", true, "norm",
                          "rms_zero_centered", "norm_eps", eps, "ffn", ffn);
  s.rope.set(attention);
  auto kinds = config.texts("block_types");
  if (kinds.empty()) kinds = {"recurrent", "recurrent", "attention"};
  const auto layers = config.integer("num_hidden_layers", 26);
  for (int64_t i = 0; i < layers; ++i) {
    const bool recurs = kinds[static_cast<size_t>(i) % kinds.size()] == "recurrent";
    const auto to = out.add_layer(recurs ? recurrent : attention);
    const auto from = fmt::format("model.layers.{}.", i);
    out.take(to + "mixer_norm.weight", from + "temporal_pre_norm.weight");
    out.take(to + "ffn_norm.weight", from + "channel_pre_norm.weight");
    take_mlp(out, to + "ffn.", from + "mlp_block.", true);
    if (recurs) {
      take_griffin_block(out, to + "mixer.", from + "temporal_block.", s);
      continue;
    }
    for (const auto& [ours, theirs] : {std::pair{"q", "q_proj"}, {"k", "k_proj"}, {"v", "v_proj"}})
      take_linear(out, to + "mixer." + ours, from + "temporal_block." + theirs, s.bias);
    take_linear(out, to + "mixer.out", from + "temporal_block.o_proj", true);
  }
}

const RegisterArchitecture register_recurrent_gemma{
    {"recurrent_gemma",
     {"w_init_variance_scale", "final_w_init_variance_scale", "layer_types", "_block_types",
      "embeddings_scale_by_sqrt_dim"},
     describe_recurrent_gemma}};

}  // namespace
}  // namespace weft
