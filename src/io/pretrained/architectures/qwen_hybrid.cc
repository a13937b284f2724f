#include "io/pretrained/architectures/qwen_hybrid.h"

namespace weft {
namespace {

// q_proj holds for each head the rows of q and then those of the gate.
void take_gated_q(Blueprint& out, const std::string& mixer, const std::string& from, const QwenHybrid& q) {
  std::vector<int64_t> queries, gates;
  for (int64_t head = 0; head < q.heads; ++head)
    for (int64_t row = 0; row < q.head_dim; ++row) {
      queries.push_back(2 * head * q.head_dim + row);
      gates.push_back((2 * head + 1) * q.head_dim + row);
    }
  const int64_t all = 2 * q.heads * q.head_dim;
  for (const auto& [ours, rows] : {std::pair{"q", queries}, {"gate", gates}}) {
    out.take(mixer + ours + ".weight",
             Piece{.tensor = from + ".weight", .shape = {all, q.delta.width}, .rows = rows});
    if (q.bias)
      out.take(mixer + ours + ".bias", Piece{.tensor = from + ".bias", .shape = {all}, .rows = rows});
  }
}

}  // namespace

void take_qwen_attention(Blueprint& out, const std::string& mixer, const std::string& from,
                         const QwenHybrid& q) {
  if (q.gated)
    take_gated_q(out, mixer, from + "q_proj", q);
  else
    take_linear(out, mixer + "q", from + "q_proj", q.bias);
  for (const auto& [ours, theirs] : {std::pair{"k", "k_proj"}, {"v", "v_proj"}, {"out", "o_proj"}})
    take_linear(out, mixer + ours, from + theirs, q.bias);
  for (const char* norm : {"q_norm", "k_norm"}) take_linear(out, mixer + norm, from + norm);
}

void take_qwen_delta(Blueprint& out, const std::string& mixer, const std::string& from, const QwenHybrid& q) {
  using Rows = QwenHybrid::Rows;
  if (q.rows == Rows::grouped) take_delta_grouped(out, mixer, from, q.delta);
  if (q.rows == Rows::separate) take_delta_separate(out, mixer, from);
  if (q.rows == Rows::joined) take_delta_joined(out, mixer, from, q.delta);
  take_delta_conv(out, mixer, from + "conv1d.weight", q.delta);
  take_delta_rest(out, mixer, from, q.rows == Rows::joined ? "out_norm" : "norm", "out_proj");
}

QwenHybrid read_qwen_hybrid(const ConfigReader& config, QwenHybrid q) {
  q.delta.width = config.integer("hidden_size", q.delta.width);
  q.delta = read_delta(config, q.delta);
  q.heads = config.integer("num_attention_heads", q.heads);
  q.kv_heads = config.integer("num_key_value_heads", q.kv_heads);
  q.head_dim = config.integer("head_dim", q.head_dim);
  q.eps = config.number("rms_norm_eps", q.eps);
  q.bias = config.flag("attention_bias", q.bias);
  return q;
}

void take_qwen_frame(const ConfigReader& config, const TensorNames& tensors, Blueprint& out,
                     const QwenHybrid& q, int64_t vocab, bool tied) {
  out.model.vocab = config.integer("vocab_size", vocab);
  out.model.width = q.delta.width;
  out.model.norm = q.norm;
  out.model.norm_eps = q.eps;
  out.model.tie = !tensors.has("lm_head.weight", !config.flag("tie_word_embeddings", tied));
  out.take("embedding.weight", q.prefix + "embed_tokens.weight");
  out.take("norm.weight", q.prefix + "norm.weight");
  if (!out.model.tie) out.take("head.weight", "lm_head.weight");
  out.pass_over("mtp.");  // heads that predict several tokens at once
}

std::string add_qwen_layer(Blueprint& out, const QwenHybrid& q, const std::optional<Node>& attention,
                           const Node& ffn, const std::string& from) {
  auto layer = attention ? *attention : delta_mixer(q.delta);
  if (attention)
    set_fields(layer, "mixer", "attention", "heads", q.heads, "kv_heads", q.kv_heads, "head_dim", q.head_dim,
               "qk_norm", true, "qk_norm_kind", q.norm, "output_gate", q.gated, "bias", q.bias, "gate_bias",
               q.bias && q.gated, "output_bias", q.bias);
  set_fields(layer, "norm", q.norm, "norm_eps", q.eps, "ffn", ffn);
  const auto to = out.add_layer(std::move(layer));
  if (attention)
    take_qwen_attention(out, to + "mixer.", from + "self_attn.", q);
  else
    take_qwen_delta(out, to + "mixer.", from + "linear_attn.", q);
  out.take(to + "mixer_norm.weight", from + "input_layernorm.weight");
  out.take(to + "ffn_norm.weight", from + "post_attention_layernorm.weight");
  return to;
}

QwenExperts read_qwen_experts(const ConfigReader& config, const DeltaConfig& delta, bool normalise,
                              bool shared_gate, int64_t experts, int64_t top_k) {
  QwenExperts e{.node = {}, .shared_gate = shared_gate};
  e.sizes = {.experts = config.integer("num_experts", experts),
             .hidden = config.integer("moe_intermediate_size", 512),
             .width = delta.width};
  e.node = fields(
      "moe", fields("hidden", e.sizes.hidden, "experts", e.sizes.experts, "top_k",
                    config.integer("num_experts_per_tok", top_k), "activation", delta.activation, "normalise",
                    normalise, "shared", config.integer("shared_expert_intermediate_size", 512),
                    "shared_gate", shared_gate));
  return e;
}

void take_qwen_experts(Blueprint& out, const TensorNames& tensors, const QwenExperts& e,
                       const std::string& ffn, const std::string& from) {
  take_linear(out, ffn + "router", from + "gate");
  take_experts(out, tensors, ffn, from + "experts.", e.sizes);
  take_mlp(out, ffn + "shared.", from + "shared_expert.");
  if (e.shared_gate) take_linear(out, ffn + "shared_gate", from + "shared_expert_gate");
}

}  // namespace weft
