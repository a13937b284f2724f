#include "io/pretrained/architectures/decoder.h"

#include "base/error.h"
#include "io/pretrained/architectures/mlp.h"

namespace weft {
namespace {

int64_t or_null(const ConfigReader& config, const char* key, std::optional<int64_t> absent, int64_t null) {
  return config.integer(key, config.is_null(key) ? null : absent.value_or(null));
}

// Published files name windows beyond the longest text (Phi-4-mini: 262144 of 131072 positions), which hide nothing.
// All tokens are then kept as they come, rather than in a ring of that size that is copied with every token.
constexpr int64_t kWideWindow = 16384;

}  // namespace

Decoder::Decoder(const ConfigReader& config, const TensorNames& tensors, const DecoderTraits& traits,
                 Blueprint& out)
    : out_(out),
      traits_(traits),
      layers_(config.integer("num_hidden_layers")),
      width_(config.integer("hidden_size")),
      heads_(config.integer("num_attention_heads")),
      kv_heads_(or_null(config, "num_key_value_heads", traits.kv_heads, heads_)),
      head_dim_(or_null(config, "head_dim", traits.head_dim, width_ / std::max<int64_t>(heads_, 1))),
      hidden_(config.integer("intermediate_size")),
      positions_(config.integer("max_position_embeddings", 0)),
      eps_(config.number("rms_norm_eps", traits.eps)),
      activation_(read_activation(config, traits.activation_key, traits.activation)) {
  out.model.vocab = config.integer("vocab_size");
  out.model.width = width_;
  out.model.norm = traits.norm;
  out.model.norm_eps = eps_;
  out.model.tie = !tensors.has("lm_head.weight", !config.flag("tie_word_embeddings", traits.tied));
  out.take("embedding.weight", "model.embed_tokens.weight");
  out.take("norm.weight", "model.norm.weight");
  if (!out.model.tie) out.take("head.weight", "lm_head.weight");
}

void Decoder::add_block(const RopeSettings& rope, int64_t window, const Node& own, const FeedForward* ffn) {
  Node layer = fields("mixer", "attention", "heads", heads_, "kv_heads", kv_heads_, "head_dim", head_dim_,
                      "bias", traits_.qkv_bias, "output_bias", traits_.output_bias, "norm", traits_.norm,
                      "norm_eps", eps_, "norm_placement", traits_.norm_placement);
  const bool hides = window < kWideWindow || window < positions_;
  if (window > 0 && hides) layer.set_child("window", node_of(window));
  if (traits_.qk_norm) {
    layer.set_child("qk_norm", node_of(true));
    layer.set_child("qk_norm_kind", node_of(traits_.norm));
    layer.set_child("qk_norm_over", node_of(traits_.qk_norm_over));
  }
  rope.set(layer);
  for (const auto& [key, value] : own.entries()) layer.set_child(key, value);
  layer.set_child("ffn", ffn ? ffn->node
                             : fields("mlp", fields("hidden", hidden_, "activation", activation_, "bias",
                                                    traits_.mlp_bias)));

  const auto from = fmt::format("model.layers.{}.", out_.layers());
  const auto to = out_.add_layer(std::move(layer));
  take_norms(to, from);
  take_attention(to + "mixer.", from + "self_attn.");
  if (ffn)
    ffn->take(to, from);
  else if (traits_.fused)
    take_fused_mlp(out_, to + "ffn.", from + "mlp.gate_up_proj.weight", from + "mlp.down_proj.weight",
                   hidden_, width_);
  else
    take_mlp(out_, to + "ffn.", from + "mlp.", traits_.mlp_bias);
  out_.pass_over(from + "self_attn.rotary_emb.inv_freq");
}

void Decoder::take_norms(const std::string& to, const std::string& from) {
  const std::string placement = traits_.norm_placement;
  const auto take = [&](const char* ours, const char* theirs) {
    out_.take(to + ours + ".weight", from + theirs + ".weight");
  };
  if (placement != "branch") take("mixer_norm", "input_layernorm");
  if (placement == "pre") return take("ffn_norm", "post_attention_layernorm");
  if (placement == "sandwich") take("ffn_norm", "pre_feedforward_layernorm");
  take("mixer_norm_post", "post_attention_layernorm");
  take("ffn_norm_post", "post_feedforward_layernorm");
}

void Decoder::take_attention(const std::string& to, const std::string& from) {
  if (traits_.fused) {
    const int64_t q = heads_ * head_dim_, kv = kv_heads_ * head_dim_;
    const auto rows = [&](const char* ours, int64_t begin, int64_t count) {
      out_.take(to + ours + ".weight", Piece{.tensor = from + "qkv_proj.weight",
                                             .shape = {q + 2 * kv, width_},
                                             .rows = row_range(begin, begin + count)});
    };
    rows("q", 0, q), rows("k", q, kv), rows("v", q + kv, kv);
  } else {
    for (const auto& [ours, theirs] : {std::pair{"q", "q_proj"}, {"k", "k_proj"}, {"v", "v_proj"}})
      take_linear(out_, to + ours, from + theirs, traits_.qkv_bias);
  }
  take_linear(out_, to + "out", from + "o_proj", traits_.output_bias);
  if (!traits_.qk_norm) return;
  out_.take(to + "q_norm.weight", from + "q_norm.weight");
  out_.take(to + "k_norm.weight", from + "k_norm.weight");
}

std::vector<int64_t> read_windows(const ConfigReader& config, int64_t layers, int64_t window,
                                  const std::function<bool(int64_t)>& slides) {
  std::vector<int64_t> windows;
  const auto types = config.texts("layer_types");
  require(types.empty() || static_cast<int64_t>(types.size()) == layers, "{}: {} types for {} layers",
          config.where("layer_types"), types.size(), layers);
  for (int64_t i = 0; i < layers; ++i) {
    bool sliding = types.empty() && slides(i);
    if (!types.empty()) {
      const auto& type = types[static_cast<size_t>(i)];
      config.need(type == "sliding_attention" || type == "full_attention", "layer_types",
                  "expected full_attention and sliding_attention");
      sliding = type == "sliding_attention";
    }
    windows.push_back(sliding ? window : 0);
  }
  return windows;
}

int64_t read_window(const ConfigReader& config, int64_t absent) {
  return config.integer("sliding_window", config.is_null("sliding_window") ? 0 : absent);
}

}  // namespace weft
