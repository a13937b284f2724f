// Phi-4-mini-flash, a SambaY: Ren et al. 2025, arXiv:2507.06607. Below the middle Mamba and windowed attention in turn;
// in the middle a Mamba that exports its memory and the one full attention, which exports its keys and values; above it
// gated memory units and cross attention that read them. No positions; all attention is differential.
#include <cmath>

#include "io/pretrained/architecture.h"
#include "io/pretrained/architectures/decoder.h"
#include "io/pretrained/architectures/mlp.h"

namespace weft {
namespace {

class Phi4Flash {
 public:
  Phi4Flash(const ConfigReader& config, const TensorNames& tensors, Blueprint& out);
  void add_layers();

 private:
  void add_layer(int64_t i);
  Node mamba(int64_t i) const;
  Node attention(int64_t i) const;
  Node upper(int64_t i) const;
  void take_mamba(const std::string& to, const std::string& from);
  void take_attention(const std::string& to, const std::string& from, bool cross);

  Blueprint& out_;
  int64_t layers_, width_, heads_, kv_heads_, head_dim_, hidden_, window_, states_, conv_, inner_;
  double eps_;
  std::string activation_;
};

Phi4Flash::Phi4Flash(const ConfigReader& config, const TensorNames& tensors, Blueprint& out)
    : out_(out),
      layers_(config.integer("num_hidden_layers", 32)),
      width_(config.integer("hidden_size", 2560)),
      heads_(config.integer("num_attention_heads", 40)),
      kv_heads_(config.integer("num_key_value_heads", config.is_null("num_key_value_heads") ? heads_ : 4)),
      head_dim_(width_ / heads_),
      hidden_(config.integer("intermediate_size", 9216)),
      window_(read_window(config, 2047)),
      states_(config.integer("mamba_d_state", 16)),
      conv_(config.integer("mamba_d_conv", 4)),
      inner_(static_cast<int64_t>(config.number("mamba_expand", 2) * static_cast<double>(width_))),
      eps_(config.number("layer_norm_eps", 1e-5)),
      activation_(read_activation(config, "hidden_act", "silu")) {
  config.need(layers_ % 4 == 0, "num_hidden_layers", "expected a multiple of 4");
  config.need(config.integer("mb_per_layer", 2) == 2, "mb_per_layer", "expected 2");
  out.model.vocab = config.integer("vocab_size", 51200);
  out.model.width = width_;
  out.model.norm = "layer";
  out.model.norm_eps = eps_;
  out.model.fp32_residual = true;
  out.model.tie = !tensors.has("lm_head.weight", !config.flag("tie_word_embeddings", true));
  out.take("embedding.weight", "model.embed_tokens.weight");
  take_linear(out, "norm", "model.final_layernorm", true);
  if (!out.model.tie) out.take("head.weight", "lm_head.weight");
}

void Phi4Flash::add_layers() {
  for (int64_t i = 0; i < layers_; ++i) add_layer(i);
}

Node Phi4Flash::mamba(int64_t i) const {
  Node layer = fields("mixer", "mamba", "inner", inner_, "states", states_, "conv", conv_);
  if (i == layers_ / 2) layer.set_child("export", fields("memory", "memory"));
  return layer;
}

// The options that attention and cross attention have in common.
Node differential(const char* mixer, int64_t heads, int64_t head_dim, int64_t layer) {
  return fields("mixer", mixer, "heads", heads, "head_dim", head_dim, "rope", 0, "bias", true, "differential",
                true, "lambda_init", 0.8 - 0.6 * std::exp(-0.3 * static_cast<double>(layer)));
}

Node Phi4Flash::attention(int64_t i) const {
  Node layer = differential("attention", heads_, head_dim_, i);
  layer.set_child("kv_heads", node_of(kv_heads_));
  layer.set_child("output_bias", node_of(true));
  if (i < layers_ / 2)
    layer.set_child("window", node_of(window_));
  else
    layer.set_child("export", fields("kv", "kv"));
  return layer;
}

Node Phi4Flash::upper(int64_t i) const {
  const bool unit = i % 2 == 0;
  Node layer =
      unit ? fields("mixer", "gmu", "memory", inner_) : differential("cross_attention", heads_, head_dim_, i);
  layer.set_child("import", unit ? fields("memory", "memory") : fields("kv", "kv"));
  return layer;
}

void Phi4Flash::add_layer(int64_t i) {
  const bool is_upper = i > layers_ / 2 + 1, even = i % 2 == 0;
  Node layer = is_upper ? upper(i) : even ? mamba(i) : attention(i);
  layer.set_child("norm", node_of("layer"));
  layer.set_child("norm_eps", node_of(eps_));
  layer.set_child("ffn", fields("mlp", fields("hidden", hidden_, "activation", activation_)));

  const auto to = out_.add_layer(std::move(layer)), from = fmt::format("model.layers.{}.", i);
  take_linear(out_, to + "mixer_norm", from + "input_layernorm", true);
  take_linear(out_, to + "ffn_norm", from + "post_attention_layernorm", true);
  take_fused_mlp(out_, to + "ffn.", from + "mlp.fc1.weight", from + "mlp.fc2.weight", hidden_, width_);
  if (!even) return take_attention(to + "mixer.", from + "attn.", is_upper);
  if (!is_upper) return take_mamba(to + "mixer.", from + "attn.");
  take_linear(out_, to + "mixer.gate", from + "attn.in_proj");
  take_linear(out_, to + "mixer.out", from + "attn.out_proj");
}

void Phi4Flash::take_mamba(const std::string& to, const std::string& from) {
  for (const auto& [ours, theirs] : {std::pair{"in", "in_proj"}, {"x", "x_proj"}, {"out", "out_proj"}})
    take_linear(out_, to + ours, from + theirs);
  take_linear(out_, to + "dt", from + "dt_proj", true);
  out_.take(to + "conv.weight", Piece{.tensor = from + "conv1d.weight", .shape = {inner_, 1, conv_}});
  out_.take(to + "conv.bias", from + "conv1d.bias");
  out_.take(to + "A_log", from + "A_log");
  out_.take(to + "skip", from + "D");
}

void Phi4Flash::take_attention(const std::string& to, const std::string& from, bool cross) {
  const int64_t q = heads_ * head_dim_, kv = cross ? 0 : kv_heads_ * head_dim_;
  const auto take_rows = [&](const char* ours, int64_t begin, int64_t count) {
    const auto rows = row_range(begin, begin + count);
    out_.take(to + ours + ".weight",
              Piece{.tensor = from + "Wqkv.weight", .shape = {q + 2 * kv, width_}, .rows = rows});
    out_.take(to + ours + ".bias", Piece{.tensor = from + "Wqkv.bias", .shape = {q + 2 * kv}, .rows = rows});
  };
  take_rows("q", 0, q);
  if (!cross) take_rows("k", q, kv), take_rows("v", q + kv, kv);
  take_linear(out_, to + "out", from + "out_proj", true);
  for (const char* name : {"lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"})
    out_.take(to + "scores." + name, from + "inner_cross_attn." + name);
  out_.take(to + "scores.norm.weight", from + "inner_cross_attn.subln.weight");
}

void describe_phi4flash(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  Phi4Flash(config, tensors, out).add_layers();
}

// The model's own code reads none of these.
const RegisterArchitecture register_phi4flash{
    {"phi4flash",
     {"resid_pdrop", "embd_pdrop", "rope_theta", "mlp_bias", "lm_head_bias", "mamba_dt_rank",
      "mamba_conv_bias", "mamba_proj_bias"},
     describe_phi4flash}};

}  // namespace
}  // namespace weft
