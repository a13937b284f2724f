// Inkling-2 (Thinking Machines 2026): branches that attend to what earlier blocks of layers wrote, clipped queries and keys,
// soft-capped experts; and its small version, whose middle layers run several times with messages between the passes.
#include <algorithm>
#include <cmath>

#include "io/pretrained/architectures/inkling.h"

namespace weft {
namespace {

constexpr const char* kInkling2Root = "model.llm.";

struct Inkling2 {
  int64_t width, conv, rel_dim, rel_extent, window, block;
  double eps, qk_clip, rel_clip, log_floor, log_alpha;
  struct Heads {
    int64_t heads, kv_heads, head_dim;
  } full, sliding;
  int64_t hidden, experts, top_k;
  double scale, gate_cap, up_cap;
  std::string scores;
  int64_t loop_begin = 0, loop_end = 0, passes = 1, gate_rank = 0;  // in blocks of attention and MLP
  double conv_scale() const { return 1.0 / std::sqrt(static_cast<double>(conv) + 1.0); }
  bool looped(int64_t i) const { return i >= loop_begin && i < loop_end; }
};

// What the two sizes of the model have other defaults for.
struct Inkling2Defaults {
  int64_t width, layers, heads, hidden, experts, log_floor;
};

Inkling2 read_inkling2(const ConfigReader& config, const Inkling2Defaults& defaults) {
  Inkling2 k{};
  k.width = config.integer("hidden_size", defaults.width);
  k.conv = config.integer({"conv_kernel_size", "sconv_kernel_size"}, 4);
  k.rel_dim = config.integer("d_rel", 16);
  k.rel_extent = config.integer("rel_extent", 1024);
  k.window = config.integer({"sliding_window_size", "sliding_window"}, 1024);
  k.block = config.integer("n_layers_per_attn_res_block", 6);
  k.eps = config.number("rms_norm_eps", 1e-6);
  k.qk_clip = config.number("qk_l2_clip_threshold", 22.627416997969522);
  k.rel_clip = config.number("rel_l2_clip_threshold", 8.0);
  k.log_floor = config.number("log_scaling_n_floor", static_cast<double>(defaults.log_floor));
  k.log_alpha = config.number("log_scaling_alpha", 0.1);
  k.full = {config.integer("num_attention_heads", defaults.heads), config.integer("num_key_value_heads", 8),
            config.integer("head_dim", 128)};
  k.sliding = {config.integer("swa_num_attention_heads", defaults.heads),
               config.integer("swa_num_key_value_heads", 8), config.integer("swa_head_dim", 128)};
  k.hidden = config.integer({"moe_intermediate_size", "intermediate_size"}, defaults.hidden);
  k.experts = config.integer({"n_routed_experts", "num_local_experts"}, defaults.experts);
  k.top_k = config.integer("num_experts_per_tok", 8);
  k.scale = config.number({"route_scale", "routed_scaling_factor"}, 8.0);
  k.gate_cap = config.number("mlp_gate_softcap", 4.0);
  k.up_cap = config.number("mlp_up_softcap", 25.0);
  k.scores = read_activation(config, "scoring_func", "sigmoid");
  return k;
}

void read_inkling2_loop(const ConfigReader& config, Inkling2& k) {
  k.loop_begin = config.integer("loop_layer_index_start", 6);
  k.loop_end = config.integer("loop_layer_index_end", 18);
  k.passes = config.integer("loop_num_passes", 3);
  k.gate_rank = config.integer("loop_gate_rank", 64);
  if (const auto loop = config.child("loop_config")) {
    k.loop_begin = loop->integer("core_start", k.loop_begin);
    k.loop_end = loop->integer("core_end", k.loop_end);
    k.passes = loop->integer("num_passes", k.passes);
    k.gate_rank = loop->integer("gate_rank", k.gate_rank);
  }
  const auto whole = [&](int64_t i) { return i % k.block == 0; };
  config.need(k.loop_begin > 0 && whole(k.loop_begin), "loop_layer_index_start",
              "expected a multiple of n_layers_per_attn_res_block above 0");
  config.need(whole(k.loop_end), "loop_layer_index_end",
              "expected a multiple of n_layers_per_attn_res_block");
  config.need(k.passes >= 1, "loop_num_passes", "expected at least 1");
}

// The gate of a message of one input.
void take_inkling2_gate(Blueprint& out, const std::string& to, const std::string& from) {
  for (const char* part : {"down", "forget", "gain"})
    out.take(fmt::format("{}{}.weight", to, part), fmt::format("{}{}_weight", from, part));
}

// Queries and gates of the messages of block i; `rows` of the two tensors that hold two queries for each block: the
// first for q and the MLP, the second for k and v.
void take_inkling2_messages(Blueprint& out, const Inkling2& k, const std::string& attention,
                            const std::string& mlp, int64_t i) {
  const int64_t first = 2 * (i - k.loop_begin), count = 2 * (k.loop_end - k.loop_begin);
  const auto rows = [&](const char* tensor, std::vector<int64_t> which) {
    return Piece{.tensor = fmt::format("{}middle_cycle_cross_pass_{}", kInkling2Root, tensor),
                 .shape = {count, k.width},
                 .rows = std::move(which)};
  };
  out.take(attention + "message_query", {rows("queries", {first}), rows("kv_queries", {first, first + 1})});
  out.take(mlp + "message_query", rows("queries", {first + 1}));
  const auto from = fmt::format("{}layers.{}.controllers.", kInkling2Root, i);
  for (const auto& [gate, name] : {std::pair{"gate0.", "attn."}, {"gate1.", "k."}, {"gate2.", "v."}})
    take_inkling2_gate(out, attention + gate, from + name);
  take_inkling2_gate(out, mlp + "gate0.", from + "mlp.");
}

Node inkling2_attention(const Inkling2& k, bool sliding, bool looped) {
  const auto& h = sliding ? k.sliding : k.full;
  auto mixer = fields("mixer", "relative_attention", "heads", h.heads, "kv_heads", h.kv_heads, "head_dim",
                      h.head_dim, "rel_dim", k.rel_dim, "rel_extent", sliding ? k.window : k.rel_extent,
                      "window", sliding ? k.window : 0, "conv", k.conv, "scaled_conv", true, "dynamic_conv",
                      !sliding, "qk_norm", "clip", "qk_clip", k.qk_clip, "rel_clip", k.rel_clip,
                      "output_gate", true, "sink", true, "inputs", sliding && !looped ? 1 : 3);
  if (!sliding) set_fields(mixer, "log_floor", k.log_floor, "log_alpha", k.log_alpha);
  return mixer;
}

void take_inkling2_attention(Blueprint& out, const Inkling2& k, const std::string& mixer,
                             const std::string& from, bool sliding) {
  const auto& h = sliding ? k.sliding : k.full;
  for (const auto& [ours, theirs] : {std::pair{"q", "wq_du"},
                                     {"k", "wk_dv"},
                                     {"v", "wv_dv"},
                                     {"relative", "wr_du"},
                                     {"gate", "gate_attn"},
                                     {"sink", "attn_sink_proj"},
                                     {"out", "wo_ud"}})
    take_linear(out, mixer + ours, from + theirs);
  for (const char* part : {"k", "v"}) {
    const auto to = fmt::format("{}{}_conv.", mixer, part), conv = fmt::format("{}{}_sconv.", from, part);
    if (sliding) {
      take_convolution(out, to + "weight", conv + "weight", h.kv_heads * h.head_dim, k.conv);
    } else {
      out.take(to + "weight", conv + "static_w");
      out.take(to + "dynamic.weight", conv + "weight_proj");
    }
  }
  out.take(mixer + "profiles", from + "rel_logits_proj.proj");
  out.take(mixer + "q_scale", from + "q_l2_clip.scale");
  out.take(mixer + "relative_scale", from + "rel_l2_clip.scale");
}

std::string add_inkling2_attention(Blueprint& out, const Inkling2& k, int64_t i, bool sliding) {
  auto layer = with_convolution(inkling2_attention(k, sliding, k.looped(i)), k.conv, k.eps, k.conv_scale());
  set_fields(layer, "separate_inputs", !sliding);
  const auto to = out.add_layer(std::move(layer)), from = fmt::format("{}layers.{}.", kInkling2Root, i);
  take_inkling2_attention(out, k, to + "mixer.stage0.", from + "attn.", sliding);
  take_convolution(out, to + "mixer.stage1.conv.weight", from + "attn_sconv.weight", k.width, k.conv);
  if (sliding) {
    take_linear(out, to + "mixer_norm", from + "attn_norm");
  } else {
    for (const auto& [ours, theirs] : {std::pair{"", "q"}, {"_2", "k"}, {"_3", "v"}})
      take_linear(out, fmt::format("{}mixer_norm{}", to, ours), fmt::format("{}{}_input_norm", from, theirs));
  }
  if (i > 0) {
    const auto shape = sliding ? std::vector<int64_t>{k.width} : std::vector<int64_t>{3, k.width};
    out.take(
        to + "mixer_residual.query",
        Piece{.tensor = fmt::format("{}attn_res.attn_queries.{}", kInkling2Root, i - 1), .shape = shape});
  }
  return to + "mixer_residual.";
}

std::string add_inkling2_experts(Blueprint& out, const Inkling2& k, int64_t i) {
  const auto ffn = fields("moe", fields("hidden", k.hidden, "experts", k.experts, "top_k", k.top_k, "router",
                                        k.scores, "choice_bias", true, "normalise_eps", 1e-20, "scale",
                                        k.scale, "gate_cap", k.gate_cap, "up_cap", k.up_cap));
  const auto to = out.add_layer(with_convolution(fields("ffn", ffn), k.conv, k.eps, k.conv_scale())),
             moe = to + "mixer.stage0.";
  const auto from = fmt::format("{}layers.{}.", kInkling2Root, i), experts = from + "mlp.experts.";
  take_linear(out, moe + "router", from + "mlp.gate");
  out.take(moe + "choice_bias", from + "mlp.gate.bias");
  // The rows of gate and up alternate in the file.
  std::vector<int64_t> rows;
  for (int64_t e = 0; e < k.experts; ++e)
    for (int64_t half = 0; half < 2; ++half)
      for (int64_t row = 0; row < k.hidden; ++row) rows.push_back(2 * (e * k.hidden + row) + half);
  out.take(moe + "up", Piece{.tensor = experts + "w13_weight",
                             .shape = {k.experts, 2 * k.hidden, k.width},
                             .rows = std::move(rows)});
  out.take(moe + "down", experts + "w2_weight");
  take_convolution(out, to + "mixer.stage1.conv.weight", from + "mlp_sconv.weight", k.width, k.conv);
  take_linear(out, to + "mixer_norm", from + "mlp_norm");
  out.take(to + "mixer_residual.query",
           Piece{.tensor = fmt::format("{}attn_res.mlp_queries.{}", kInkling2Root, i), .shape = {k.width}});
  return to + "mixer_residual.";
}

void describe_both(const ConfigReader& config, const Inkling2Defaults& defaults, bool loop, Blueprint& out) {
  auto k = read_inkling2(config, defaults);
  if (loop) read_inkling2_loop(config, k);
  const auto layers = config.integer("num_hidden_layers", defaults.layers);
  const auto types = read_hybrid_types(config, layers);
  auto& model = out.model;
  model.vocab = config.integer("vocab_size", 201024);
  model.width = k.width;
  model.norm_eps = k.eps;
  model.embedding_norm = "rms";
  model.tie = false;
  model.logits = std::min(model.vocab, config.integer("unpadded_vocab_size", 200058));
  model.logit_softcap = config.number("final_logit_softcapping", 30.0);
  model.residual = fields("attention", fields("block", 2 * k.block, "message_rank", k.gate_rank));
  if (loop) model.loop = fields("begin", 2 * k.loop_begin, "end", 2 * k.loop_end, "passes", k.passes);
  const std::string root = kInkling2Root;
  out.take("embedding.weight", root + "embed.weight");
  out.take("embedding_norm.weight", root + "embed_norm.weight");
  out.take("norm.weight", root + "norm.weight");
  out.take("head.weight", root + "unembed.weight");
  out.take("stack.residual.query", Piece{.tensor = root + "attn_res.output_query", .shape = {k.width}});
  for (int64_t i = 0; i < layers; ++i) {
    const auto attention =
        add_inkling2_attention(out, k, i, types[static_cast<size_t>(i)] == "hybrid_sliding");
    const auto mlp = add_inkling2_experts(out, k, i);
    if (k.looped(i)) take_inkling2_messages(out, k, attention, mlp, i);
  }
}

void describe_inkling2(const ConfigReader& config, const TensorNames&, Blueprint& out) {
  describe_both(
      config, {.width = 4608, .layers = 48, .heads = 48, .hidden = 2304, .experts = 384, .log_floor = 128000},
      false, out);
}
void describe_inkling2_loop(const ConfigReader& config, const TensorNames&, Blueprint& out) {
  describe_both(config,
                {.width = 2304, .layers = 24, .heads = 24, .hidden = 1152, .experts = 128, .log_floor = 8192},
                true, out);
}

const RegisterArchitecture register_inkling2{
    {"inkling2_text",
     {"hidden_act", "max_position_embeddings", "model_max_length", "number_of_conv_states"},
     describe_inkling2}};
const RegisterArchitecture register_inkling2_loop{
    {"inkling2_loop_text",
     {"hidden_act", "max_position_embeddings", "model_max_length", "number_of_conv_states"},
     describe_inkling2_loop}};

}  // namespace
}  // namespace weft
