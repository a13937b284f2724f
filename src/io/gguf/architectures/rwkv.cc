// "rwkv6" and "rwkv7", as the checkpoints of their authors name the tensors ("blocks.0.att.key.weight").
#include <cmath>

#include "io/gguf/architectures/shared.h"

namespace weft::gguf {
namespace {

void read_rwkv(const GgufFile& file, const char* model_type, nlohmann::json& config) {
  const auto& metadata = file.metadata();
  read_common(file, model_type, "RWKV", config);
  for (const char* absent :
       {"architectures", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"})
    config.erase(absent);
  config["head_size"] = metadata.integer(".wkv.head_size");
  config["intermediate_size"] = metadata.integer(".feed_forward_length");
  config["layer_norm_epsilon"] = metadata.number(".attention.layer_norm_epsilon", 1e-5);
}

void read_rwkv6(const GgufFile& file, nlohmann::json& config) {
  read_rwkv(file, "rwkv6", config);
  config["mix_rank"] = file.metadata().integer(".time_mix_extra_dim");
  config["decay_rank"] = file.metadata().integer(".time_decay_extra_dim");
}

constexpr std::pair<const char*, const char*> kRanks[] = {{"decay_rank", "decay_lora_rank"},
                                                          {"rate_rank", "iclr_lora_rank"},
                                                          {"value_rank", "value_residual_mix_lora_rank"},
                                                          {"gate_rank", "gate_lora_rank"}};

void read_rwkv7(const GgufFile& file, nlohmann::json& config) {
  read_rwkv(file, "rwkv7", config);
  for (const auto& [ours, theirs] : kRanks)
    config[ours] = file.metadata().integer(fmt::format(".attention.{}", theirs));
}

void write_rwkv(const ConfigReader& config, GgufMetadata& metadata) {
  const bool six = config.text("model_type") == "rwkv6";
  const auto width = config.integer("hidden_size");
  metadata.set_u32(".context_length", 1 << 20);  // any
  metadata.set_u32(".embedding_length", width);
  metadata.set_u32(".block_count", config.integer("num_hidden_layers"));
  metadata.set_u32(".vocab_size", config.integer("vocab_size"));
  metadata.set_u32(".attention.head_count", 0);
  metadata.set_f32(".attention.layer_norm_epsilon", config.number("layer_norm_epsilon", 1e-5));
  metadata.set_u32(".wkv.head_size", config.integer("head_size", 64));
  metadata.set_u32(".feed_forward_length",
                   config.integer("intermediate_size", six ? width * 7 / 2 / 32 * 32 : 4 * width));
  if (six) {
    config.need(config.number("head_norm_eps", 64e-5) == 64e-5, "head_norm_eps",
                "GGUF does not record it: expected 64e-5");
    metadata.set_u32(".time_mix_extra_dim", config.integer("mix_rank", 32));
    metadata.set_u32(".time_decay_extra_dim", config.integer("decay_rank", 64));
    metadata.set_u32(".rescale_every_n_layers", 0);
    return;
  }
  for (const auto& [ours, theirs] : kRanks)
    metadata.set_u32(fmt::format(".attention.{}", theirs), config.integer(ours));
}

struct RwkvNames {
  GgufNames& names;
  std::string from, to;
  int64_t width;

  void norm(const std::string& ours, const std::string& theirs) const {
    names.linear(from + ours, to + theirs);
  }
  void matrix(const std::string& ours, const std::string& theirs, double scale = 1) const {
    names.link({.tensor = from + ours + ".weight", .pieces = {{to + theirs + ".weight"}}, .scale = scale});
  }
  // [D] in the file, [1, 1, D] in the checkpoint.
  void vector(const std::string& ours, const std::string& theirs) const {
    names.link({.tensor = from + ours,
                .pieces = {{.tensor = to + theirs + ".weight", .shape = {width}}},
                .shape = {1, 1, width}});
  }
  void transposed(const std::string& ours, const std::string& theirs) const {
    names.link(from + ours, Piece{.tensor = to + theirs + ".weight", .transposed = true});
  }
  // Row `row` of the stack of token shifts [rows, 1, 1, D].
  void shift(const std::string& ours, int64_t row, int64_t rows) const {
    names.link({.tensor = from + ours,
                .pieces = {{.tensor = to + "time_mix_lerp_fused.weight",
                            .shape = {rows, 1, 1, width},
                            .rows = {row}}},
                .shape = {1, 1, width}});
  }
};

// Norms, projections of the time mixer, keys and values of the channel mixer.
void name_rwkv_block(const RwkvNames& n, double scale) {
  n.norm("ln1", "attn_norm");
  n.norm("ln2", "attn_norm_2");
  n.norm("att.ln_x", "time_mix_ln");
  for (const char* part : {"receptance", "key", "value"})
    n.matrix(fmt::format("att.{}", part), fmt::format("time_mix_{}", part));
  n.matrix("att.output", "time_mix_output", scale);
  n.matrix("ffn.key", "channel_mix_key");
  n.matrix("ffn.value", "channel_mix_value", scale);
}

void name_rwkv_ends(GgufNames& names) {
  names.link("emb.weight", "token_embd.weight");
  names.linear("blocks.0.ln0", "token_embd_norm");
  names.linear("ln_out", "output_norm");
  names.link("head.weight", "output.weight");
}

void name_rwkv6(const ConfigReader& config, GgufNames& names) {
  name_rwkv_ends(names);
  const auto width = config.integer("hidden_size"), head = config.integer("head_size", 64),
             rank = config.integer("mix_rank", 32);
  // Where the stream is halved every n layers, output projections are kept divided by 2^(layer / n).
  const auto every = names.reading() ? names.file()->metadata().integer(".rescale_every_n_layers", 0) : 0;
  for (int64_t i = 0; i < config.integer("num_hidden_layers"); ++i) {
    const RwkvNames n{names, fmt::format("blocks.{}.", i), block(i), width};
    name_rwkv_block(n, every > 0 ? std::ldexp(1.0, -static_cast<int>(i / every)) : 1.0);
    n.matrix("att.gate", "time_mix_gate");
    n.matrix("ffn.receptance", "channel_mix_receptance");
    n.vector("att.time_maa_x", "time_mix_lerp_x");
    int64_t row = 0;
    for (const char* part : {"w", "k", "v", "r", "g"})
      n.shift(fmt::format("att.time_maa_{}", part), row++, 5);
    n.transposed("att.time_maa_w1", "time_mix_w1");
    names.link(
        {.tensor = n.from + "att.time_maa_w2",
         .pieces = {{.tensor = n.to + "time_mix_w2.weight", .shape = {5, width, rank}, .transposed = true}},
         .shape = {5, rank, width}});
    n.vector("att.time_decay", "time_mix_decay");
    n.transposed("att.time_decay_w1", "time_mix_decay_w1");
    n.transposed("att.time_decay_w2", "time_mix_decay_w2");
    names.link({.tensor = n.from + "att.time_faaaa",
                .pieces = {{.tensor = n.to + "time_mix_first.weight", .shape = {width / head, head}}},
                .shape = {width / head, head}});
    n.vector("ffn.time_maa_k", "channel_mix_lerp_k");
    n.vector("ffn.time_maa_r", "channel_mix_lerp_r");
  }
}

void name_rwkv7(const ConfigReader& config, GgufNames& names) {
  name_rwkv_ends(names);
  const auto width = config.integer("hidden_size"), head = config.integer("head_size", 64);
  for (const char* unused : {"v0", "v1", "v2"}) names.pass_over(fmt::format("blk.0.time_mix_{}.", unused));
  for (int64_t i = 0; i < config.integer("num_hidden_layers"); ++i) {
    const RwkvNames n{names, fmt::format("blocks.{}.", i), block(i), width};
    name_rwkv_block(n, 1.0);
    int64_t row = 0;
    for (const char* part : {"r", "w", "k", "v", "a", "g"}) n.shift(fmt::format("att.x_{}", part), row++, 6);
    for (const char* part : {"w", "a", "v", "g"}) {
      if (i == 0 && *part == 'v') continue;
      if (*part != 'g') n.vector(fmt::format("att.{}0", part), fmt::format("time_mix_{}0", part));
      for (int low = 1; low <= 2; ++low)
        n.transposed(fmt::format("att.{}{}", part, low), fmt::format("time_mix_{}{}", part, low));
    }
    n.vector("att.k_k", "time_mix_k_k");
    n.vector("att.k_a", "time_mix_k_a");
    names.link({.tensor = n.from + "att.r_k",
                .pieces = {{.tensor = n.to + "time_mix_r_k.weight", .shape = {width}}},
                .shape = {width / head, head}});
    n.vector("ffn.x_k", "channel_mix_lerp_k");
  }
}

const RegisterGgufArchitecture register_gguf_rwkv6{{"rwkv6", {"rwkv6"}, read_rwkv6, write_rwkv, name_rwkv6}};
const RegisterGgufArchitecture register_gguf_rwkv7{{"rwkv7", {"rwkv7"}, read_rwkv7, write_rwkv, name_rwkv7}};

}  // namespace
}  // namespace weft::gguf
