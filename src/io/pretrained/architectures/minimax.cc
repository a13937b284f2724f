// MiniMax-Text-01: lightning attention, softmax attention now and then, experts; the residual is what the norm gives.
// MiniMax 2025, arXiv:2501.08313. A block is two layers of weft, as each branch has factors of its own.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <limits>

#include "base/error.h"
#include "io/pretrained/architectures/decoder.h"
#include "io/pretrained/architectures/latent.h"
#include "io/pretrained/architectures/moe.h"

namespace weft {
namespace {

struct MiniMaxSizes {
  int64_t layers, width, heads, kv_heads, head_dim, block;
  double eps;
};

// The tables of decays that belong to the file. They follow from the config, by the arithmetic in fp32 that wrote them.
void add_decay_tables(Blueprint& out, const std::string& from, int64_t layer, const MiniMaxSizes& s) {
  const double base = 1 / std::pow(2.0, 8.0 / static_cast<double>(s.heads));
  const double depth = 1 - static_cast<double>(layer) / (static_cast<double>(s.layers - 1) + 1e-5) + 1e-5;
  const auto slope =
      (at::pow(base, at::arange(s.heads, at::kLong) + 1).to(at::kFloat) * depth).view({-1, 1, 1});
  const auto place = at::arange(s.block, at::kLong) + 1;
  const auto distance = (place.unsqueeze(1) - place.unsqueeze(0)).view({1, 1, s.block, s.block});
  const auto exponent = slope * distance;
  out.constant(from + "slope_rate", slope);
  out.constant(from + "query_decay", at::exp(-slope * place.unsqueeze(1)));
  out.constant(from + "key_decay", at::exp(-slope * (s.block - place.unsqueeze(1))));
  out.constant(from + "diagonal_decay",
               at::exp(at::where(exponent >= 0, -exponent, -std::numeric_limits<float>::infinity())));
}

// {alpha, beta} of a kind of branch: the residual and what is added to it are multiplied by them.
void set_branch_factors(const ConfigReader& config, const std::string& kind, Node& layer) {
  layer.set_child("skip_scale", node_of(config.number(kind + "_alpha_factor", 1.0)));
  layer.set_child("residual_scale", node_of(config.number(kind + "_beta_factor", 1.0)));
  layer.set_child("norm_placement", node_of("normed"));
}

std::vector<bool> minimax_full_layers(const ConfigReader& config, int64_t layers) {
  const auto types = config.texts("layer_types");
  require(types.empty() || static_cast<int64_t>(types.size()) == layers, "{}: {} types for {} layers",
          config.where("layer_types"), types.size(), layers);
  std::vector<bool> full;
  for (int64_t i = 0; i < layers; ++i)
    full.push_back(types.empty() ? i % 2 == 0 : types[static_cast<size_t>(i)] != "linear_attention");
  return full;
}

void add_lightning(Blueprint& out, const ConfigReader& config, const std::string& activation, int64_t layer,
                   const MiniMaxSizes& s) {
  Node node = fields("mixer", "lightning_attention", "heads", s.heads, "head_dim", s.head_dim, "depth", layer,
                     "depths", s.layers, "activation", activation, "norm_eps", s.eps);
  set_branch_factors(config, "linear_attn", node);
  const auto to = out.add_layer(std::move(node)), from = fmt::format("model.layers.{}.", layer);
  out.take(to + "mixer_norm.weight", from + "input_layernorm.weight");
  const auto block = from + "self_attn.";
  take_linear(out, to + "mixer.qkv", block + "qkv_proj");
  take_linear(out, to + "mixer.gate", block + "output_gate");
  take_linear(out, to + "mixer.out", block + "out_proj");
  out.take(to + "mixer.norm.weight", block + "norm.weight");
  add_decay_tables(out, block, layer, s);
}

void add_attention(Blueprint& out, const ConfigReader& config, const RopeSettings& rope, int64_t window,
                   int64_t layer, const MiniMaxSizes& s) {
  Node node = fields("mixer", "attention", "heads", s.heads, "kv_heads", s.kv_heads, "head_dim", s.head_dim,
                     "window", window, "norm_eps", s.eps);
  rope.set(node);
  set_branch_factors(config, "full_attn", node);
  const auto to = out.add_layer(std::move(node)), from = fmt::format("model.layers.{}.", layer);
  out.take(to + "mixer_norm.weight", from + "input_layernorm.weight");
  for (const auto& [ours, theirs] :
       {std::pair{"q", "q_proj"}, {"k", "k_proj"}, {"v", "v_proj"}, {"out", "o_proj"}})
    take_linear(out, to + "mixer." + ours, from + "self_attn." + theirs);
}

void describe_minimax(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  MiniMaxSizes s{.layers = config.integer("num_hidden_layers"),
                 .width = config.integer("hidden_size"),
                 .heads = config.integer("num_attention_heads"),
                 .kv_heads = 8,
                 .head_dim = 0,
                 .block = config.integer("block_size", 256),
                 .eps = config.number("rms_norm_eps", 1e-5)};
  s.kv_heads = config.integer("num_key_value_heads", config.is_null("num_key_value_heads") ? s.heads : 8);
  s.head_dim = config.integer("head_dim", s.width / std::max<int64_t>(s.heads, 1));
  describe_frame(config, tensors, "embed_tokens", s.eps, true, s.layers, 0, out);
  const auto full = minimax_full_layers(config, s.layers);
  const auto rope = read_rope(config, s.head_dim, {.theta = 1e6, .positions = 4096 * 32});
  const int64_t window = read_window(config, 0);
  const auto hidden = config.integer("intermediate_size");
  const auto activation = read_activation(config, "hidden_act", "silu");
  const ExpertSizes sizes{config.integer({"num_local_experts", "num_experts"}, 8), hidden, s.width};
  for (const char* kind : {"full_attn", "linear_attn"})  // where no layer is of the kind
    for (const char* factor : {"_alpha_factor", "_beta_factor"})
      config.ignore({(std::string(kind) + factor).c_str()});

  for (int64_t i = 0; i < s.layers; ++i) {
    if (full[static_cast<size_t>(i)])
      add_attention(out, config, rope, window, i, s);
    else
      add_lightning(out, config, activation, i, s);
    Node node = fields("ffn", mixtral_experts(config, hidden, activation), "norm_eps", s.eps);
    set_branch_factors(config, "mlp", node);
    const auto to = out.add_layer(std::move(node)), from = fmt::format("model.layers.{}.", i);
    out.take(to + "ffn_norm.weight", from + "post_attention_layernorm.weight");
    take_mixtral_experts(out, tensors, to, from, sizes);
  }
}

const RegisterArchitecture register_minimax{{"minimax", {"partial_rotary_factor"}, describe_minimax}};

}  // namespace
}  // namespace weft
