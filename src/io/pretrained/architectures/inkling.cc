// Inkling (Thinking Machines 2026): attention with learned biases over distances instead of rotary positions, short
// convolutions of keys, values and the outputs of both branches, experts with shared ones that the router weighs too.
#include <algorithm>

#include "io/pretrained/architectures/inkling.h"

namespace weft {
namespace {

struct Inkling {
  int64_t width, conv, rel_dim, rel_extent, window, log_floor;
  double eps, log_alpha;
  struct Heads {
    int64_t heads, kv_heads, head_dim;
  } full, sliding;
  int64_t hidden, expert_hidden, experts, top_k, shared;
  double scale;
  std::string activation;
};

Inkling read_inkling(const ConfigReader& config) {
  Inkling k{};
  k.width = config.integer("hidden_size", 6144);
  k.conv = config.integer({"conv_kernel_size", "sconv_kernel_size"}, 4);
  k.rel_dim = config.integer("d_rel", 16);
  k.rel_extent = config.integer("rel_extent", 1024);
  k.window = config.integer({"sliding_window_size", "sliding_window"}, 512);
  k.log_floor = config.integer("log_scaling_n_floor", 0);
  k.log_alpha = config.number("log_scaling_alpha", 0.1);
  k.eps = config.number("rms_norm_eps", 1e-6);
  k.full = {config.integer("num_attention_heads", 64), config.integer("num_key_value_heads", 8),
            config.integer("head_dim", 128)};
  k.sliding = {config.integer("swa_num_attention_heads", 64), config.integer("swa_num_key_value_heads", 16),
               config.integer("swa_head_dim", 128)};
  k.expert_hidden = config.integer("moe_intermediate_size", 3072);
  k.hidden = config.integer("intermediate_size", 24576);
  if (config.has("dense_intermediate_size")) {  // then intermediate_size is that of the experts
    k.expert_hidden = k.hidden;
    k.hidden = config.integer("dense_intermediate_size");
  }
  k.experts = config.integer({"n_routed_experts", "num_local_experts"}, 256);
  k.top_k = config.integer("num_experts_per_tok", 6);
  k.shared = config.integer("n_shared_experts", 2);
  config.need(k.shared >= 1, "n_shared_experts", "expected at least 1");
  k.scale = config.number("route_scale", 8.0);
  k.activation = read_activation(config, "hidden_act", "silu");
  return k;
}

std::vector<std::string> inkling_mlp_types(const ConfigReader& config, int64_t layers) {
  auto types = config.texts("mlp_layer_types");
  const auto dense = config.integer("dense_mlp_idx", 0);
  for (int64_t i = static_cast<int64_t>(types.size()); i < layers; ++i)
    types.push_back(i < dense ? "dense" : "sparse");
  for (const auto& type : types)
    config.need(type == "dense" || type == "sparse", "mlp_layer_types", "expected dense or sparse");
  return types;
}

void add_inkling_attention(Blueprint& out, const Inkling& k, const std::string& from, bool sliding) {
  const auto& h = sliding ? k.sliding : k.full;
  auto attention =
      fields("mixer", "relative_attention", "heads", h.heads, "kv_heads", h.kv_heads, "head_dim", h.head_dim,
             "rel_dim", k.rel_dim, "rel_extent", sliding ? k.window : k.rel_extent, "conv", k.conv, "scale",
             1.0 / static_cast<double>(h.head_dim), "window", sliding ? k.window : 0);
  if (!sliding && k.log_floor > 0) set_fields(attention, "log_floor", k.log_floor, "log_alpha", k.log_alpha);
  const auto to = out.add_layer(with_convolution(std::move(attention), k.conv, k.eps));
  const auto mixer = to + "mixer.stage0.", own = from + "self_attn.";
  for (const auto& [ours, theirs] : {std::pair{"q", "q_proj"},
                                     {"k", "k_proj"},
                                     {"v", "v_proj"},
                                     {"relative", "r_proj"},
                                     {"out", "o_proj"}})
    take_linear(out, mixer + ours, own + theirs);
  for (const char* norm : {"q_norm", "k_norm"}) take_linear(out, mixer + norm, own + norm);
  take_convolution(out, mixer + "k_conv.weight", own + "k_sconv.conv1d.weight", h.kv_heads * h.head_dim,
                   k.conv);
  take_convolution(out, mixer + "v_conv.weight", own + "v_sconv.conv1d.weight", h.kv_heads * h.head_dim,
                   k.conv);
  out.take(mixer + "profiles", own + "rel_logits_proj.proj");
  take_convolution(out, to + "mixer.stage1.conv.weight", from + "attn_sconv.conv1d.weight", k.width, k.conv);
  take_linear(out, to + "mixer_norm", from + "input_layernorm");
}

void take_inkling_experts(Blueprint& out, const Inkling& k, const std::string& ffn, const std::string& from) {
  take_linear(out, ffn + "router", from + "gate");
  out.take(ffn + "gain", from + "gate.global_scale");
  out.take(ffn + "choice_bias", from + "gate.e_score_correction_bias");
  std::vector<Piece> up{
      {.tensor = from + "experts.gate_up_proj", .shape = {k.experts, 2 * k.expert_hidden, k.width}}};
  std::vector<Piece> down{
      {.tensor = from + "experts.down_proj", .shape = {k.experts, k.width, k.expert_hidden}}};
  for (int64_t s = 0; s < k.shared; ++s) {
    const auto rows = row_range(s * k.expert_hidden, (s + 1) * k.expert_hidden);
    for (const char* name : {"gate_proj", "up_proj"})
      up.push_back({.tensor = from + "shared_experts." + name,
                    .shape = {k.shared, k.expert_hidden, k.width},
                    .rows = rows});
  }
  down.push_back(
      {.tensor = from + "shared_experts.down_proj", .shape = {k.shared, k.width, k.expert_hidden}});
  out.take(ffn + "up", std::move(up));
  out.take(ffn + "down", std::move(down));
}

void add_inkling_mlp(Blueprint& out, const Inkling& k, const std::string& from, bool dense) {
  const auto ffn =
      dense ? fields("mlp", fields("hidden", k.hidden, "activation", k.activation, "gain", true))
            : fields("moe", fields("hidden", k.expert_hidden, "experts", k.experts, "top_k", k.top_k,
                                   "activation", k.activation, "router", "sigmoid", "choice_bias", true,
                                   "always", k.shared, "scale", k.scale, "gain", true));
  const auto to = out.add_layer(with_convolution(fields("ffn", ffn), k.conv, k.eps)),
             stage = to + "mixer.stage0.";
  if (dense) {
    take_mlp(out, stage, from + "mlp.");
    out.take(stage + "gain", from + "mlp.global_scale");
  } else {
    take_inkling_experts(out, k, stage, from + "mlp.");
  }
  take_convolution(out, to + "mixer.stage1.conv.weight", from + "mlp_sconv.conv1d.weight", k.width, k.conv);
  take_linear(out, to + "mixer_norm", from + "post_attention_layernorm");
}

void describe_inkling(const ConfigReader& config, const TensorNames&, Blueprint& out) {
  const auto k = read_inkling(config);
  const auto layers = config.integer("num_hidden_layers", 66);
  const auto attention = read_hybrid_types(config, layers), mlp = inkling_mlp_types(config, layers);
  out.model.vocab = config.integer("vocab_size", 201024);
  out.model.width = k.width;
  out.model.norm_eps = k.eps;
  out.model.embedding_norm = "rms";
  out.model.tie = false;
  out.model.logits = std::min(out.model.vocab, config.integer("unpadded_vocab_size", 0));
  out.model.logit_scale = 1.0 / config.number({"logits_mup_width_multiplier", "embedding_multiplier"}, 24.0);
  out.take("embedding.weight", "model.embed_tokens.weight");
  out.take("embedding_norm.weight", "model.embed_tokens.embed_norm.weight");
  out.take("norm.weight", "model.norm.weight");
  out.take("head.weight", "lm_head.weight");
  out.pass_over("model.mtp.");
  for (int64_t i = 0; i < layers; ++i) {
    const auto from = fmt::format("model.layers.{}.", i);
    add_inkling_attention(out, k, from, attention[static_cast<size_t>(i)] == "hybrid_sliding");
    add_inkling_mlp(out, k, from, mlp[static_cast<size_t>(i)] == "dense");
  }
}

const RegisterArchitecture register_inkling{
    {"inkling_text",
     {"shared_expert_sink", "rms_norm_eps_moe_gate", "num_mtp_layers", "chain_hidden_post_norm",
      "mtp_hidden_states_first", "mtp_local_layer_ids", "number_of_conv_states", "max_position_embeddings",
      "model_max_length"},
     describe_inkling}};

}  // namespace

Node with_convolution(Node first, int64_t taps, double norm_eps, double scale) {
  Node stages = Node::list();
  stages.push_back(std::move(first));
  stages.push_back(fields("mixer", "causal_conv", "conv", taps, "scale", scale));
  return fields("mixer", "chain", "stages", stages, "norm_eps", norm_eps);
}

void take_convolution(Blueprint& out, const std::string& to, const std::string& tensor, int64_t channels,
                      int64_t taps) {
  out.take(to, Piece{.tensor = tensor, .shape = {channels, 1, taps}});
}

std::vector<std::string> read_hybrid_types(const ConfigReader& config, int64_t layers) {
  auto types = config.texts("layer_types");
  const auto local = config.integers("local_layer_ids");
  const bool listed = config.has("local_layer_ids");
  for (int64_t i = static_cast<int64_t>(types.size()); i < layers; ++i) {
    const bool sliding = listed ? std::count(local.begin(), local.end(), i) > 0 : (i + 1) % 6 != 0;
    types.push_back(sliding ? "hybrid_sliding" : "hybrid");
  }
  for (const auto& type : types)
    config.need(type == "hybrid" || type == "hybrid_sliding", "layer_types",
                "expected hybrid or hybrid_sliding");
  return types;
}

}  // namespace weft
