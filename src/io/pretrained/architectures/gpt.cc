// GPT-2 (Radford et al. 2019) and GPT-NeoX (Black et al. 2022, arXiv:2204.06745).
#include <cmath>

#include "io/pretrained/architecture.h"
#include "io/pretrained/architectures/mlp.h"
#include "io/pretrained/architectures/rope_config.h"

namespace weft {
namespace {

void take_layer_norm(Blueprint& out, const std::string& to, const std::string& from) {
  take_linear(out, to, from, true);
}

Node attention_block(int64_t heads, int64_t head_dim, double eps) {
  return fields("mixer", "attention", "heads", heads, "head_dim", head_dim, "norm", "layer", "norm_eps", eps);
}

// A projection that the file holds as [in, out], of which the columns [begin, begin + count) are this one's.
void take_columns(Blueprint& out, const std::string& to, const std::string& from, int64_t in, int64_t all,
                  int64_t begin, int64_t count) {
  const auto columns = row_range(begin, begin + count);
  out.take(to + ".weight",
           Piece{.tensor = from + ".weight", .shape = {in, all}, .rows = columns, .transposed = true});
  out.take(to + ".bias", Piece{.tensor = from + ".bias", .shape = {all}, .rows = columns});
}

// The scale of scores in a layer.
double gpt2_scale(const ConfigReader& config, int64_t head_dim, int64_t layer) {
  const bool by_width = config.flag("scale_attn_weights", true);
  const bool by_layer = config.flag("scale_attn_by_inverse_layer_idx", false);
  return (by_width ? 1 / std::sqrt(static_cast<double>(head_dim)) : 1.0) /
         (by_layer ? static_cast<double>(layer + 1) : 1.0);
}

void describe_gpt2(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  config.need(!config.flag("add_cross_attention", false), "add_cross_attention", "expected false");
  const auto width = config.integer({"n_embd", "hidden_size"}),
             heads = config.integer({"n_head", "num_attention_heads"});
  const auto hidden = config.integer("n_inner", 4 * width), head_dim = width / heads;
  const auto eps = config.number("layer_norm_epsilon", 1e-5);
  const auto activation = read_activation(config, "activation_function", "gelu_new");
  // Files from before transformers had heads lack the prefix.
  const std::string prefix = tensors.has("transformer.wte.weight", true) ? "transformer." : "";

  out.model.vocab = config.integer("vocab_size");
  out.model.width = width;
  out.model.positions = config.integer({"n_positions", "max_position_embeddings"}, 1024);
  out.model.norm = "layer";
  out.model.norm_eps = eps;
  out.model.tie = !tensors.has("lm_head.weight", !config.flag("tie_word_embeddings", true));
  out.take("embedding.weight", prefix + "wte.weight");
  out.take("positions.weight", prefix + "wpe.weight");
  take_layer_norm(out, "norm", prefix + "ln_f");
  if (!out.model.tie) out.take("head.weight", "lm_head.weight");

  const auto layers = config.integer({"n_layer", "num_hidden_layers"});
  for (int64_t i = 0; i < layers; ++i) {
    Node layer = attention_block(heads, head_dim, eps);
    for (const char* bias : {"bias", "output_bias"}) layer.set_child(bias, node_of(true));
    layer.set_child("rope", node_of(0));
    layer.set_child("scale", node_of(gpt2_scale(config, head_dim, i)));
    layer.set_child("ffn", fields("mlp", fields("hidden", hidden, "activation", activation, "gated", false,
                                                "bias", true)));
    const auto to = out.add_layer(std::move(layer)), from = fmt::format("{}h.{}.", prefix, i);
    take_layer_norm(out, to + "mixer_norm", from + "ln_1");
    take_layer_norm(out, to + "ffn_norm", from + "ln_2");
    int64_t begin = 0;
    for (const char* part : {"q", "k", "v"}) {
      take_columns(out, to + "mixer." + part, from + "attn.c_attn", width, 3 * width, begin, width);
      begin += width;
    }
    take_columns(out, to + "mixer.out", from + "attn.c_proj", width, width, 0, width);
    take_columns(out, to + "ffn.up", from + "mlp.c_fc", width, hidden, 0, hidden);
    take_columns(out, to + "ffn.down", from + "mlp.c_proj", hidden, width, 0, width);
    for (const char* mask : {"attn.bias", "attn.masked_bias"}) out.pass_over(from + mask);
  }
}

// q, k or v: the file's rows are head after head, each with its q, k and v.
void take_of_heads(Blueprint& out, const std::string& to, const std::string& from, int64_t heads,
                   int64_t head_dim, int64_t part, bool bias) {
  std::vector<int64_t> rows;
  for (int64_t head = 0; head < heads; ++head)
    for (int64_t i = 0; i < head_dim; ++i) rows.push_back((3 * head + part) * head_dim + i);
  const int64_t width = heads * head_dim;
  out.take(to + ".weight", Piece{.tensor = from + ".weight", .shape = {3 * width, width}, .rows = rows});
  if (bias) out.take(to + ".bias", Piece{.tensor = from + ".bias", .shape = {3 * width}, .rows = rows});
}

void describe_gpt_neox(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto width = config.integer("hidden_size"), heads = config.integer("num_attention_heads");
  const auto hidden = config.integer("intermediate_size"), head_dim = width / heads;
  const auto eps = config.number("layer_norm_eps", 1e-5);
  const auto activation = read_activation(config, "hidden_act", "gelu");
  const bool bias = config.flag("attention_bias", true);
  const bool parallel = config.flag("use_parallel_residual", true);
  const auto rope = read_rope(config, head_dim,
                              {.partial = 0.25,
                               .theta_key = {"rotary_emb_base", "rope_theta"},
                               .partial_key = {"rotary_pct", "partial_rotary_factor"}});

  out.model.vocab = config.integer("vocab_size");
  out.model.width = width;
  out.model.norm = "layer";
  out.model.norm_eps = eps;
  out.model.tie = !tensors.has("embed_out.weight", !config.flag("tie_word_embeddings", false));
  out.take("embedding.weight", "gpt_neox.embed_in.weight");
  take_layer_norm(out, "norm", "gpt_neox.final_layer_norm");
  if (!out.model.tie) out.take("head.weight", "embed_out.weight");

  const auto layers = config.integer("num_hidden_layers");
  for (int64_t i = 0; i < layers; ++i) {
    Node layer = attention_block(heads, head_dim, eps);
    layer.set_child("norm_placement", node_of(parallel ? "parallel" : "pre"));
    for (const char* option : {"bias", "output_bias"}) layer.set_child(option, node_of(bias));
    rope.set(layer);
    layer.set_child("ffn", fields("mlp", fields("hidden", hidden, "activation", activation, "gated", false,
                                                "bias", true)));
    const auto to = out.add_layer(std::move(layer)), from = fmt::format("gpt_neox.layers.{}.", i);
    take_layer_norm(out, to + "mixer_norm", from + "input_layernorm");
    take_layer_norm(out, to + "ffn_norm", from + "post_attention_layernorm");
    int64_t part = 0;
    for (const char* ours : {"q", "k", "v"})
      take_of_heads(out, to + "mixer." + ours, from + "attention.query_key_value", heads, head_dim, part++,
                    bias);
    take_linear(out, to + "mixer.out", from + "attention.dense", bias);
    take_mlp(out, to + "ffn.", from + "mlp.", true,
             {.gate = "", .up = "dense_h_to_4h", .down = "dense_4h_to_h"});
    for (const char* rest : {"attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"})
      out.pass_over(from + rest);
  }
}

const RegisterArchitecture register_gpt2{
    {"gpt2",
     {"resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_activation", "summary_first_dropout",
      "summary_proj_to_labels", "summary_type", "summary_use_proj", "reorder_and_upcast_attn", "n_ctx",
      "_num_labels", "transformers.js_config"},
     describe_gpt2}};
const RegisterArchitecture register_gpt_neox{
    {"gpt_neox",
     {"hidden_dropout", "classifier_dropout", "attention_probs_dropout_prob", "hidden_dropout_prob"},
     describe_gpt_neox}};

}  // namespace
}  // namespace weft
