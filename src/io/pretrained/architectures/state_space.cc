#include "io/pretrained/architectures/state_space.h"

#include <cmath>
#include <map>

#include "io/pretrained/architectures/mlp.h"

namespace weft {
namespace {

// The weights [C, W] and the bias of a convolution that the file has as [C, 1, W].
void take_conv(Blueprint& out, const std::string& to, const std::string& from, int64_t channels,
               int64_t width, bool bias) {
  out.take(to + "conv.weight", Piece{.tensor = from + "conv1d.weight", .shape = {channels, 1, width}});
  if (bias) out.take(to + "conv.bias", from + "conv1d.bias");
}

}  // namespace

int64_t describe_frame(const ConfigReader& config, const TensorNames& tensors, Blueprint& out,
                       const std::vector<std::string>& embedding, const std::string& norm, double eps,
                       bool tied) {
  const char* head = "lm_head.weight";
  out.model.vocab = config.integer("vocab_size");
  out.model.width = config.integer("hidden_size");
  out.model.norm_eps = eps;
  out.model.tie = !tensors.has(head, !config.flag("tie_word_embeddings", tied));
  out.take("embedding.weight", tensors.pick(embedding));
  out.take("norm.weight", norm);
  if (!out.model.tie) out.take("head.weight", head);
  return out.model.width;
}

int64_t read_auto(const ConfigReader& config, const ConfigKey& key, int64_t otherwise) {
  if (!config.is_text(key)) return config.integer(key, otherwise);
  config.need(config.text(key) == "auto", key, "expected a number or \"auto\"");
  return otherwise;
}

int64_t read_nullable(const ConfigReader& config, const char* key, int64_t absent, int64_t null) {
  return config.integer(key, config.is_null(key) ? null : absent);
}

std::vector<std::string> read_layer_types(const ConfigReader& config, const ConfigKey& key) {
  static const std::map<std::string, std::string> renamed{{"mamba", "linear_attention"},
                                                          {"attention", "full_attention"}};
  auto types = config.texts(key);
  for (auto& type : types)
    if (const auto found = renamed.find(type); found != renamed.end()) type = found->second;
  return types;
}

Node MambaShape::mixer() const {
  Node node =
      fields("mixer", "mamba", "inner", inner, "states", states, "conv", conv, "dt_rank", rank, "heads",
             heads, "bias", bias, "output_bias", bias, "conv_bias", conv_bias, "activation", activation);
  if (map_norm != "none") {
    node.set_child("map_norm", node_of(map_norm));
    node.set_child("map_norm_eps", node_of(map_norm_eps));
  }
  return node;
}

void MambaShape::take(Blueprint& out, const std::string& to, const std::string& from) const {
  Piece in{.tensor = from + "in_proj.weight"}, in_bias{.tensor = from + "in_proj.bias"};
  const int64_t channels = inner / heads;
  const auto piece = [&](const std::string& name, std::vector<int64_t> by_head) {
    return zamba ? Piece{.tensor = from + name, .shape = std::move(by_head)} : Piece{.tensor = from + name};
  };
  if (zamba) {
    for (int64_t i = 0; i < 2 * inner; ++i) in.rows.push_back(i < inner ? 2 * i : 2 * (i - inner) + 1);
    in_bias.rows = in.rows;
  }
  out.take(to + "in.weight", in);
  if (bias) out.take(to + "in.bias", in_bias);
  take_conv(out, to, from, inner, conv, conv_bias);
  out.take(to + "x.weight",
           piece(zamba ? "x_proj_weight" : "x_proj.weight", {heads, rank + 2 * states, channels}));
  out.take(to + "dt.weight", piece(zamba ? "dt_proj_weight" : "dt_proj.weight", {heads, channels, rank}));
  out.take(to + "dt.bias", piece(zamba ? "dt_proj_bias" : "dt_proj.bias", {heads, channels}));
  out.take(to + "A_log", piece("A_log", {heads, channels, states}));
  out.take(to + "skip", piece("D", {heads, channels}));
  take_linear(out, to + "out", from + "out_proj", bias);
  if (map_norm == "rms")
    for (const char* name : {"dt", "b", "c"})
      out.take(to + name + "_norm.weight", from + name + "_layernorm.weight");
}

void Mamba2Shape::read_limits(const ConfigReader& config) {
  const auto limits = config.numbers("time_step_limit");
  if (limits.empty()) return;
  config.need(limits.size() == 2 && limits[0] >= 0 && limits[1] > 0, "time_step_limit",
              "expected the least and the largest step size");
  dt_max = limits[1];
  dt_min = std::min(limits[0], dt_max);
}

Node Mamba2Shape::mixer() const {
  Node node = fields("mixer", "mamba2", "heads", heads, "head_dim", head_dim, "states", states, "groups",
                     groups, "conv", conv, "bias", bias, "output_bias", output_bias, "conv_bias", conv_bias,
                     "activation", activation, "gate_norm", gate_norm, "dt_min", dt_min);
  if (std::isfinite(dt_max)) node.set_child("dt_max", node_of(dt_max));
  if (gate_norm != "none") {
    node.set_child("norm_groups", node_of(groups));
    node.set_child("gate_norm_eps", node_of(gate_norm_eps));
  }
  if (!scales.empty()) {
    Node list = Node::list();
    for (const double scale : scales) list.push_back(node_of(scale));
    node.set_child("scales", std::move(list));
  }
  return node;
}

void Mamba2Shape::take(Blueprint& out, const std::string& to, const std::string& from) const {
  take_linear(out, to + "in", from + "in_proj", bias);
  take_conv(out, to, from, heads * head_dim + 2 * groups * states, conv, conv_bias);
  out.take(to + "dt_bias", from + "dt_bias");
  out.take(to + "A_log", from + "A_log");
  out.take(to + "skip", from + "D");
  if (gate_norm != "none") out.take(to + "norm.weight", from + "norm.weight");
  take_linear(out, to + "out", from + "out_proj", output_bias);
}

Mamba2Shape read_mamba2(const ConfigReader& config, int64_t inner, double eps) {
  Mamba2Shape shape;
  shape.heads = config.integer("mamba_n_heads", 128);
  shape.head_dim = read_auto(config, "mamba_d_head", inner / std::max<int64_t>(shape.heads, 1));
  config.need(shape.heads * shape.head_dim == inner, "mamba_n_heads",
              fmt::format("heads of width {} that make {}", shape.head_dim, inner));
  shape.states = config.integer("mamba_d_state", 256);
  shape.groups = config.integer("mamba_n_groups", 1);
  shape.conv = config.integer("mamba_d_conv", 4);
  shape.conv_bias = config.flag("mamba_conv_bias", true);
  shape.bias = shape.output_bias = config.flag("mamba_proj_bias", false);
  shape.activation = read_activation(config, "hidden_act", "silu");
  shape.gate_norm_eps = eps;
  shape.read_limits(config);
  return shape;
}

Node AttentionShape::mixer(const RopeSettings& rope) const {
  Node node = fields("mixer", "attention", "heads", heads, "kv_heads", kv_heads, "head_dim", head_dim, "bias",
                     bias, "output_bias", output_bias, "scale", scale, "adapter_rank", adapter_rank);
  rope.set(node);
  return node;
}

void AttentionShape::take(Blueprint& out, const std::string& to, const std::string& from) const {
  for (const char* name : {"q", "k", "v"}) take_linear(out, to + name, from + name + "_proj", bias);
  take_linear(out, to + "out", from + "o_proj", output_bias);
}

AttentionShape read_attention(const ConfigReader& config, int64_t width, int64_t kv_heads) {
  AttentionShape shape;
  shape.heads = config.integer("num_attention_heads", 32);
  shape.kv_heads =
      read_nullable(config, "num_key_value_heads", kv_heads > 0 ? kv_heads : shape.heads, shape.heads);
  shape.head_dim = config.integer("head_dim", width / std::max<int64_t>(shape.heads, 1));
  return shape;
}

}  // namespace weft
