// xLSTM 7B and its kin: mLSTM blocks with gated MLPs. Beck et al. 2025, arXiv:2503.13427.
#include <cmath>

#include "io/pretrained/architectures/mlp.h"

namespace weft {
namespace {

// The smallest multiple of `unit` that is at least x; transformers counts in floating point, and so x need not be whole.
int64_t xlstm_rounded(double x, int64_t unit) {
  const auto step = static_cast<double>(unit);
  return static_cast<int64_t>(std::floor((x + step - 1) / step) * step);
}

// One number under two names, which must agree when both are given.
int64_t same_number(const ConfigReader& config, const char* name, const char* other, int64_t otherwise) {
  const auto value = config.integer(name, config.integer(other, otherwise));
  config.need(config.integer(other, value) == value, other,
              fmt::format("expected {}, as {} has it", value, name));
  return value;
}

struct XlstmSizes {
  int64_t width, heads, keys, values, hidden;
  bool bias, fused;
};

// The rows [begin, begin + count) of a projection that is fused with others of `rows` rows in all.
void take_fused_rows(Blueprint& out, const std::string& to, const std::string& from, const XlstmSizes& s,
                     int64_t rows, int64_t begin, int64_t count, bool bias) {
  const auto which = row_range(begin, begin + count);
  out.take(to + ".weight", Piece{.tensor = from + ".weight", .shape = {rows, s.width}, .rows = which});
  if (bias) out.take(to + ".bias", Piece{.tensor = from + ".bias", .shape = {rows}, .rows = which});
}

void take_mlstm_gate(Blueprint& out, const std::string& mixer, const char* ours, const std::string& from,
                     const XlstmSizes& s, int64_t rows, int64_t begin) {
  const auto which = row_range(begin, begin + s.heads);
  out.take(mixer + ours + "_gate.weight",
           Piece{.tensor = from + ".weight", .shape = {rows, s.width}, .rows = which});
  out.take(mixer + ours + "_bias", Piece{.tensor = from + ".bias", .shape = {rows}, .rows = which});
}

void take_mlstm(Blueprint& out, const std::string& mixer, const std::string& from, const XlstmSizes& s) {
  if (s.fused) {
    const int64_t rows = 2 * s.keys + 2 * s.values;
    const auto all = from + "qkv_opreact";
    take_fused_rows(out, mixer + "q", all, s, rows, 0, s.keys, s.bias);
    take_fused_rows(out, mixer + "k", all, s, rows, s.keys, s.keys, s.bias);
    take_fused_rows(out, mixer + "v", all, s, rows, 2 * s.keys, s.values, s.bias);
    take_fused_rows(out, mixer + "gate", all, s, rows, 2 * s.keys + s.values, s.values, s.bias);
    take_mlstm_gate(out, mixer, "input", from + "ifgate_preact", s, 2 * s.heads, 0);
    take_mlstm_gate(out, mixer, "forget", from + "ifgate_preact", s, 2 * s.heads, s.heads);
  } else {
    for (const auto& [ours, theirs] : {std::pair{"q", "q"}, {"k", "k"}, {"v", "v"}, {"gate", "ogate_preact"}})
      take_linear(out, mixer + ours, from + theirs, s.bias);
    take_mlstm_gate(out, mixer, "input", from + "igate_preact", s, s.heads, 0);
    take_mlstm_gate(out, mixer, "forget", from + "fgate_preact", s, s.heads, 0);
  }
  take_linear(out, mixer + "out", from + "out_proj", s.bias);
  take_linear(out, mixer + "norm", from + "multihead_norm", s.bias);
}

void take_xlstm_ffn(Blueprint& out, const std::string& ffn, const std::string& from, const XlstmSizes& s) {
  if (!s.fused)
    return take_mlp(out, ffn, from, s.bias, {.gate = "proj_up_gate", .up = "proj_up", .down = "proj_down"});
  take_fused_rows(out, ffn + "gate", from + "proj_up_gate_z", s, 2 * s.hidden, 0, s.hidden, s.bias);
  take_fused_rows(out, ffn + "up", from + "proj_up_gate_z", s, 2 * s.hidden, s.hidden, s.hidden, s.bias);
  take_linear(out, ffn + "down", from + "proj_down", s.bias);
}

void describe_xlstm(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto width = same_number(config, "hidden_size", "embedding_dim", 4096);
  const auto part = [&](double factor) { return static_cast<int64_t>(static_cast<double>(width) * factor); };
  const auto mode = config.text("weight_mode", "single");
  config.need(mode == "single" || mode == "fused", "weight_mode", "expected single or fused");
  const XlstmSizes s{
      .width = width,
      .heads = config.integer("num_heads", 8),
      .keys = part(config.number("qk_dim_factor", 0.5)),
      .values = part(config.number("v_dim_factor", 1.0)),
      .hidden = xlstm_rounded(static_cast<double>(width) * config.number("ffn_proj_factor", 2.667),
                              config.integer("ffn_round_up_to_multiple_of", 64)),
      .bias = config.flag("use_bias", false),
      .fused = mode == "fused"};
  config.need(s.keys % s.heads == 0, "qk_dim_factor",
              fmt::format("{} keys are no multiple of {} heads", s.keys, s.heads));
  config.need(s.values % s.heads == 0, "v_dim_factor",
              fmt::format("{} values are no multiple of {} heads", s.values, s.heads));
  const auto eps = config.number("norm_eps", 1e-6);
  out.model.vocab = config.integer("vocab_size", 50304);
  out.model.width = width;
  out.model.norm_eps = eps;
  out.model.logit_softcap = config.number("output_logit_soft_cap", 30.0);
  out.model.tie = !tensors.has("lm_head.weight", !config.flag("tie_word_embeddings", false));
  out.take("embedding.weight", "backbone.embeddings.weight");
  out.take("norm.weight", "backbone.out_norm.weight");
  if (!out.model.tie) out.take("head.weight", "lm_head.weight");

  const auto layer = fields("mixer", "mlstm", "heads", s.heads, "head_dim", s.keys / s.heads, "value_dim",
                            s.values / s.heads, "conv", 0, "gate_cap", config.number("gate_soft_cap", 15.0),
                            "eps", config.number("eps", 1e-6), "bias", s.bias, "gate_bias", s.bias, "norm",
                            s.bias ? "rms_bias" : "rms", "norm_eps", eps, "ffn",
                            fields("mlp", fields("hidden", s.hidden, "bias", s.bias)));
  const auto blocks = same_number(config, "num_blocks", "num_hidden_layers", 32);
  for (int64_t i = 0; i < blocks; ++i) {
    const auto to = out.add_layer(layer);
    const auto from = fmt::format("backbone.blocks.{}.", i);
    take_linear(out, to + "mixer_norm", from + "norm_mlstm", s.bias);
    take_linear(out, to + "ffn_norm", from + "norm_ffn", s.bias);
    take_mlstm(out, to + "mixer.", from + "mlstm_layer.", s);
    take_xlstm_ffn(out, to + "ffn.", from + "ffn.", s);
  }
}

// Kernels, their sizes and types, and what they return do not change the result; add_out_norm is not read by
// transformers either: the norm is always there.
const RegisterArchitecture register_xlstm{{"xlstm",
                                           {"chunkwise_kernel",
                                            "sequence_kernel",
                                            "step_kernel",
                                            "mode",
                                            "chunk_size",
                                            "return_last_states",
                                            "autocast_kernel_dtype",
                                            "inference_state_dtype",
                                            "max_inference_chunksize",
                                            "norm_reduction_force_float32",
                                            "add_out_norm",
                                            "add_embedding_dropout",
                                            "add_forward_backend_padding",
                                            "add_post_blocks_norm",
                                            "add_post_norm",
                                            "add_qk_norm",
                                            "cell_norm_eps",
                                            "embedding_dropout",
                                            "force_bos_token_insert",
                                            "head_dim",
                                            "igate_bias_init_range",
                                            "mlstm_round_up_to_multiple_of"},
                                           describe_xlstm}};

}  // namespace
}  // namespace weft
