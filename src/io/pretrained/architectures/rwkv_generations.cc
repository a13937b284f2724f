// RWKV-4, 5, 6 and 7 under the names that their own checkpoints use ("blocks.0.att.key.weight"). Peng et al. 2023,
// arXiv:2305.13048 (4); 2024, arXiv:2404.05892 (5 and 6); 2025, arXiv:2503.14456 (7).
//
// These checkpoints have no config.json; tools/convert_rwkv.py writes one of model_type rwkv4 to rwkv7 with the keys
// read here. hidden_size, num_hidden_layers, vocab_size, intermediate_size (default 4 D; 5 and 6: 3.5 D in multiples of
// 32), head_size (64), layer_norm_epsilon (1e-5), and what a generation has besides:
//   rwkv4  attention_hidden_size (D)
//   rwkv5  output_gate (true), head_norm_eps (64e-5)
//   rwkv6  mix_rank (32), decay_rank (64), head_norm_eps (64e-5)
//   rwkv7  decay_rank, rate_rank, value_rank, gate_rank
#include "io/pretrained/architectures/mlp.h"
#include "nn/mixers/rwkv.h"

namespace weft {
namespace {

struct RwkvGeneration {
  Blueprint& out;
  int64_t width, head_size, layers, hidden;
  double eps;

  int64_t heads() const { return width / head_size; }

  void norm(const std::string& to, const std::string& from) const {
    out.take(to + ".weight", from + ".weight");
    out.take(to + ".bias", from + ".bias");
  }
  // [D] in weft, [1, 1, D] in the file.
  void vector(const std::string& to, const std::string& from) const {
    out.take(to, Piece{.tensor = from, .shape = {1, 1, width}});
  }
  // [D] in weft, [H, K] in the file.
  void by_head(const std::string& to, const std::string& from) const {
    out.take(to, Piece{.tensor = from, .shape = {heads(), head_size}});
  }
  // x w1 w2 in the file: [D, rank] and [rank, D].
  void low_rank(const std::string& to, const std::string& from) const {
    out.take(to + "_in.weight", Piece{.tensor = from + "1", .transposed = true});
    out.take(to + "_out.weight", Piece{.tensor = from + "2", .transposed = true});
  }
  // A layer with its norm; returns the prefix of its mixer's parameters.
  std::string layer(Node node, const std::string& norm_name) const {
    set_fields(node, "norm", "layer", "norm_eps", eps);
    const auto prefix = out.add_layer(std::move(node));
    norm(prefix + "mixer_norm", norm_name);
    return prefix + "mixer.";
  }
  // r, k, v, the output projection and, from RWKV-5 on, the norm of the heads.
  void projections(const std::string& mixer, const std::string& att, bool head_norm) const {
    for (const auto& [ours, theirs] :
         {std::pair{"r", "receptance"}, {"k", "key"}, {"v", "value"}, {"out", "output"}})
      take_linear(out, mixer + ours, att + theirs);
    if (head_norm) norm(mixer + "norm", att + "ln_x");
  }
  // The channel mixer. `mix`: the names of its token shift without k and r; gated up to RWKV-6.
  void channel_mix(const std::string& block, const std::string& mix, bool gated, bool current) const {
    const auto mixer =
        layer(fields("mixer", "rwkv_channel_mix", "hidden", hidden, "gate", gated, "mix_current", current),
              block + "ln2");
    const auto ffn = block + "ffn.";
    vector(mixer + "mix_k", ffn + mix + "k");
    take_linear(out, mixer + "k", ffn + "key");
    take_linear(out, mixer + "v", ffn + "value");
    if (!gated) return;
    vector(mixer + "mix_r", ffn + mix + "r");
    take_linear(out, mixer + "r", ffn + "receptance");
  }
};

// Sizes, embedding and head; `widening` gives the hidden width where the config does not.
RwkvGeneration read_generation(const ConfigReader& config, Blueprint& out, int64_t hidden_by_default) {
  const RwkvGeneration g{.out = out,
                         .width = config.integer("hidden_size"),
                         .head_size = config.integer("head_size", 64),
                         .layers = config.integer("num_hidden_layers"),
                         .hidden = config.integer("intermediate_size", hidden_by_default),
                         .eps = config.number("layer_norm_epsilon", 1e-5)};
  out.model.vocab = config.integer("vocab_size");
  out.model.width = g.width;
  out.model.norm = out.model.embedding_norm = "layer";
  out.model.norm_eps = g.eps;
  out.model.tie = false;
  out.take("embedding.weight", "emb.weight");
  g.norm("embedding_norm", "blocks.0.ln0");
  g.norm("norm", "ln_out");
  out.take("head.weight", "head.weight");
  return g;
}

int64_t four_widths(const ConfigReader& config) { return 4 * config.integer("hidden_size"); }
int64_t three_and_a_half_widths(const ConfigReader& config) {
  return config.integer("hidden_size") * 7 / 2 / 32 * 32;
}

void describe_rwkv4(const ConfigReader& config, const TensorNames&, Blueprint& out) {
  const auto g = read_generation(config, out, four_widths(config));
  const auto inner = config.integer("attention_hidden_size", g.width);
  for (int64_t i = 0; i < g.layers; ++i) {
    const auto block = fmt::format("blocks.{}.", i), att = block + "att.";
    const auto mixer = g.layer(fields("mixer", "rwkv4", "inner", inner, "mix_current", true), block + "ln1");
    g.projections(mixer, att, false);
    for (const char* part : {"r", "k", "v"}) g.vector(mixer + "mix_" + part, att + "time_mix_" + part);
    out.take(mixer + "decay", att + "time_decay");
    out.take(mixer + "bonus", att + "time_first");
    g.channel_mix(block, "time_mix_", true, true);
  }
}

void describe_rwkv5(const ConfigReader& config, const TensorNames&, Blueprint& out) {
  const auto g = read_generation(config, out, three_and_a_half_widths(config));
  const bool gate = config.flag("output_gate", true);
  const auto node =
      fields("mixer", "rwkv6", "head_dim", g.head_size, "data_dependent", false, "output_gate", gate,
             "mix_current", true, "head_norm_eps", config.number("head_norm_eps", kRwkvNormEps));
  for (int64_t i = 0; i < g.layers; ++i) {
    const auto block = fmt::format("blocks.{}.", i), att = block + "att.";
    const auto mixer = g.layer(node, block + "ln1");
    g.projections(mixer, att, true);
    for (const char* part : {"r", "k", "v"}) g.vector(mixer + "mix_" + part, att + "time_mix_" + part);
    if (gate) {
      g.vector(mixer + "mix_g", att + "time_mix_g");
      take_linear(out, mixer + "gate", att + "gate");
    }
    g.by_head(mixer + "decay", att + "time_decay");
    g.by_head(mixer + "bonus", att + "time_faaaa");
    g.channel_mix(block, "time_mix_", true, true);
  }
}

void describe_rwkv6(const ConfigReader& config, const TensorNames&, Blueprint& out) {
  const auto g = read_generation(config, out, three_and_a_half_widths(config));
  const auto rank = config.integer("mix_rank", 32);
  const auto node =
      fields("mixer", "rwkv6", "head_dim", g.head_size, "mix_rank", rank, "decay_rank",
             config.integer("decay_rank", 64), "head_norm_eps", config.number("head_norm_eps", kRwkvNormEps));
  // The low-rank shifts stand in the order w, k, v, r, g in the file and r, w, k, v, g here.
  std::vector<int64_t> rows;
  for (const int64_t part : {3, 0, 1, 2, 4})
    for (int64_t row = part * rank; row < (part + 1) * rank; ++row) rows.push_back(row);
  for (int64_t i = 0; i < g.layers; ++i) {
    const auto block = fmt::format("blocks.{}.", i), att = block + "att.";
    const auto mixer = g.layer(node, block + "ln1");
    g.projections(mixer, att, true);
    take_linear(out, mixer + "gate", att + "gate");
    for (const char* part : {"x", "r", "w", "k", "v", "g"})
      g.vector(mixer + "mix_" + part, att + "time_maa_" + part);
    out.take(
        mixer + "mix_in.weight",
        Piece{.tensor = att + "time_maa_w1", .shape = {g.width, 5 * rank}, .rows = rows, .transposed = true});
    out.take(mixer + "mix_out",
             Piece{.tensor = att + "time_maa_w2", .shape = {5, rank, g.width}, .rows = rows});
    g.vector(mixer + "decay", att + "time_decay");
    g.low_rank(mixer + "decay", att + "time_decay_w");
    g.by_head(mixer + "bonus", att + "time_faaaa");
    g.channel_mix(block, "time_maa_", true, false);
  }
}

void describe_rwkv7(const ConfigReader& config, const TensorNames&, Blueprint& out) {
  const auto g = read_generation(config, out, four_widths(config));
  auto node = fields("mixer", "rwkv7", "head_dim", g.head_size);
  for (const char* rank : {"decay_rank", "rate_rank", "value_rank", "gate_rank"})
    set_fields(node, rank, config.integer(rank, 0));
  for (const char* unused : {"v0", "v1", "v2"}) out.pass_over(fmt::format("blocks.0.att.{}", unused));
  for (int64_t i = 0; i < g.layers; ++i) {
    const auto block = fmt::format("blocks.{}.", i), att = block + "att.";
    auto own = node;
    set_fields(own, i == 0 ? "export" : "import", fields("v_first", "v_first"), "value_residual", i > 0);
    const auto mixer = g.layer(own, block + "ln1");
    g.projections(mixer, att, true);
    for (const char* part : {"r", "w", "k", "v", "a", "g"})
      g.vector(mixer + "mix_" + part, att + "x_" + part);
    for (const auto& [ours, theirs] :
         {std::pair{"decay", "w"}, {"rate", "a"}, {"value", "v"}, {"gate", "g"}}) {
      if (i == 0 && theirs[0] == 'v') continue;
      g.low_rank(mixer + ours, att + theirs);
      if (theirs[0] != 'g') g.vector(mixer + ours + "_bias", att + theirs + "0");
    }
    g.vector(mixer + "k_k", att + "k_k");
    g.vector(mixer + "k_a", att + "k_a");
    out.take(mixer + "r_k", att + "r_k");
    g.channel_mix(block, "x_", false, false);
  }
}

const RegisterArchitecture register_rwkv4{{"rwkv4", {}, describe_rwkv4}};
const RegisterArchitecture register_rwkv5{{"rwkv5", {}, describe_rwkv5}};
const RegisterArchitecture register_rwkv6{{"rwkv6", {}, describe_rwkv6}};
const RegisterArchitecture register_rwkv7{{"rwkv7", {}, describe_rwkv7}};

}  // namespace
}  // namespace weft
