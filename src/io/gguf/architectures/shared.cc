#include "io/gguf/architectures/shared.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>

#include "base/error.h"

namespace weft::gguf {
namespace {

struct Llama3Scaling {
  double factor, low, high, original;
};

// What the wavelength of frequency `i` is divided by. Llama 3.1, arXiv:2407.21783: long wavelengths by `factor`, short
// ones not at all, linear in the frequency between.
double llama3_factor(const Llama3Scaling& s, double base, int64_t head_dim, int64_t i) {
  const auto wavelength =
      2 * std::numbers::pi * std::pow(base, 2.0 * static_cast<double>(i) / static_cast<double>(head_dim));
  if (wavelength < s.original / s.high) return 1;
  if (wavelength > s.original / s.low) return s.factor;
  const auto share = (s.original / wavelength - s.low) / (s.high - s.low);
  return 1 / ((1 - share) / s.factor + share);
}

at::Tensor llama3_factors(const Llama3Scaling& scaling, double base, int64_t head_dim) {
  std::vector<float> factors;
  for (int64_t i = 0; i < head_dim / 2; ++i)
    factors.push_back(static_cast<float>(llama3_factor(scaling, base, head_dim, i)));
  return at::tensor(factors, at::kFloat);
}

// The scaling that gives these factors, when it is one of those in use.
std::optional<Llama3Scaling> llama3_of(const at::Tensor& factors, double base) {
  const auto factor = factors.max().item<double>();
  for (const double original : {8192.0, 4096.0, 2048.0, 16384.0, 32768.0, 65536.0, 131072.0}) {
    const Llama3Scaling guess{
        .factor = decimal_double(static_cast<float>(factor)), .low = 1, .high = 4, .original = original};
    if (at::allclose(llama3_factors(guess, base, factors.numel() * 2), factors, 1e-5, 0)) return guess;
  }
  return std::nullopt;
}

// Frequency factors as a rope type of config.json.
void read_factors(const at::Tensor& factors, double base, const nlohmann::json& config,
                  nlohmann::json& rope) {
  if (const auto scaling = llama3_of(factors, base)) {
    rope.update({{"rope_type", "llama3"},
                 {"factor", scaling->factor},
                 {"low_freq_factor", scaling->low},
                 {"high_freq_factor", scaling->high},
                 {"original_max_position_embeddings", static_cast<int64_t>(scaling->original)}});
    return;
  }
  const auto* data = factors.const_data_ptr<float>();
  std::vector<double> list;
  for (int64_t i = 0; i < factors.numel(); ++i) list.push_back(decimal_double(data[i]));
  rope.update({{"rope_type", "longrope"},
               {"factor", 1.0},
               {"short_factor", list},
               {"long_factor", list},
               {"attention_factor", 1.0},
               {"original_max_position_embeddings", config.value("max_position_embeddings", 4096)}});
}

std::optional<ConfigReader> rope_of(const ConfigReader& config) {
  return config.child({"rope_parameters", "rope_scaling"});
}

}  // namespace

void read_common(const GgufFile& file, const std::string& model_type, const std::string& class_name,
                 nlohmann::json& config) {
  const auto& metadata = file.metadata();
  config["model_type"] = model_type;
  config["architectures"] = {class_name};
  config["vocab_size"] = file.tensor("token_embd.weight").shape.front();
  config["hidden_size"] = metadata.integer(".embedding_length");
  config["num_hidden_layers"] = metadata.integer(".block_count");
  if (metadata.has(".context_length"))
    config["max_position_embeddings"] = metadata.integer(".context_length");
  if (metadata.has(".attention.layer_norm_rms_epsilon"))
    config["rms_norm_eps"] = metadata.number(".attention.layer_norm_rms_epsilon");
  config["tie_word_embeddings"] = !file.contains("output.weight");
  for (const auto& [ours, theirs] : {std::pair{"bos_token_id", "bos_token_id"},
                                     {"eos_token_id", "eos_token_id"},
                                     {"pad_token_id", "padding_token_id"}})
    if (const auto key = fmt::format("tokenizer.ggml.{}", theirs); metadata.has(key))
      config[ours] = metadata.integer(key);
}

void read_heads(const GgufMetadata& metadata, nlohmann::json& config) {
  const auto layers = metadata.integer(".block_count");
  const auto only = [&](std::string_view key) {
    int64_t found = 0;
    for (const auto count : metadata.per_layer(key, layers)) {
      require(count == 0 || found == 0 || count == found,
              "{}: {} and {} heads; weft reads models with one number", metadata.where(key), found, count);
      if (count != 0) found = count;
    }
    require(found > 0, "{}: no layer has heads", metadata.where(key));
    return found;
  };
  const auto heads = only(".attention.head_count");
  config["num_attention_heads"] = heads;
  config["num_key_value_heads"] =
      metadata.has(".attention.head_count_kv") ? only(".attention.head_count_kv") : heads;
  config["head_dim"] =
      metadata.integer(".attention.key_length", metadata.integer(".embedding_length") / heads);
  require(metadata.integer(".attention.value_length", config["head_dim"]) == config["head_dim"],
          "{}: differs from the key length {}", metadata.where(".attention.value_length"),
          config["head_dim"].get<int64_t>());
}

void read_rope(const GgufFile& file, nlohmann::json& config, double base) {
  const auto& metadata = file.metadata();
  base = metadata.number(".rope.freq_base", base);
  nlohmann::json rope = {{"rope_type", "default"}, {"rope_theta", base}};
  const auto type =
      metadata.text(".rope.scaling.type", metadata.has(".rope.scale_linear") ? "linear" : "none");
  if (type == "linear") {
    const auto factor = metadata.number(".rope.scaling.factor", metadata.number(".rope.scale_linear", 1.0));
    if (factor != 1.0) rope.update({{"rope_type", "linear"}, {"factor", factor}});
  } else if (type == "yarn") {
    rope.update(
        {{"rope_type", "yarn"},
         {"factor", metadata.number(".rope.scaling.factor")},
         {"original_max_position_embeddings", metadata.integer(".rope.scaling.original_context_length")}});
    for (const auto& [ours, theirs] : {std::pair{"attention_factor", "attn_factor"},
                                       {"beta_fast", "yarn_beta_fast"},
                                       {"beta_slow", "yarn_beta_slow"}})
      if (const auto key = fmt::format(".rope.scaling.{}", theirs); metadata.has(key))
        rope[ours] = metadata.number(key);
  } else {
    supported(type == "none", "{}: '{}' is not supported; expected none, linear or yarn",
              metadata.where(".rope.scaling.type"), type);
  }
  if (file.contains("rope_freqs.weight")) {
    const auto factors = file.view("rope_freqs.weight").to(at::kFloat);
    require(factors.dim() == 1, "{}: tensor 'rope_freqs.weight' is no vector", file.path());
    if (!factors.eq(1).all().item<bool>()) read_factors(factors, base, config, rope);
  }
  config["rope_parameters"] = rope;
}

void write_common(const ConfigReader& config, GgufMetadata& metadata) {
  metadata.set_u32(".block_count", config.integer("num_hidden_layers"));
  metadata.set_u32(".context_length", config.integer({"max_position_embeddings", "model_max_length"}, 2048));
  metadata.set_u32(".embedding_length", config.integer("hidden_size"));
  metadata.set_u32(".vocab_size", config.integer("vocab_size"));
  metadata.set_f32(".attention.layer_norm_rms_epsilon",
                   config.number({"rms_norm_eps", "layer_norm_epsilon", "norm_eps", "layer_norm_eps"}, 1e-6));
}

int64_t head_dim_of(const ConfigReader& config) {
  return config.integer({"head_dim", "attention_head_dim"},
                        config.integer("hidden_size") / config.integer("num_attention_heads"));
}

void write_heads(const ConfigReader& config, GgufMetadata& metadata) {
  const auto heads = config.integer("num_attention_heads");
  metadata.set_u32(".attention.head_count", heads);
  metadata.set_u32(".attention.head_count_kv", config.integer("num_key_value_heads", heads));
  metadata.set_u32(".attention.key_length", head_dim_of(config));
  metadata.set_u32(".attention.value_length", head_dim_of(config));
}

void write_rope(const ConfigReader& config, GgufMetadata& metadata, double base) {
  base = config.number("rope_theta", base);
  const auto rope = rope_of(config);
  const auto type = rope ? rope->text({"rope_type", "type"}, "default") : "default";
  metadata.set_f32(".rope.freq_base", rope ? rope->number("rope_theta", base) : base);
  if (type == "default" || type == "llama3") return;  // llama3 is rope_freqs.weight
  rope->need(type == "linear" || type == "yarn", {"rope_type", "type"},
             "expected default, linear, yarn or llama3");
  metadata.set_text(".rope.scaling.type", type);
  metadata.set_f32(".rope.scaling.factor", rope->number("factor"));
  if (type == "linear") return;
  metadata.set_u32(
      ".rope.scaling.original_context_length",
      rope->integer("original_max_position_embeddings", config.integer("max_position_embeddings", 2048)));
  for (const auto& [ours, theirs] : {std::pair{"attention_factor", "attn_factor"},
                                     {"beta_fast", "yarn_beta_fast"},
                                     {"beta_slow", "yarn_beta_slow"}})
    if (rope->has(ours)) metadata.set_f32(fmt::format(".rope.scaling.{}", theirs), rope->number(ours));
}

void name_rope_factors(const ConfigReader& config, GgufNames& names) {
  names.pass_over("rope_freqs.weight");
  const auto rope = rope_of(config);
  if (names.reading() || !rope || rope->text({"rope_type", "type"}, "default") != "llama3") return;
  const Llama3Scaling scaling{.factor = rope->number("factor"),
                              .low = rope->number("low_freq_factor"),
                              .high = rope->number("high_freq_factor"),
                              .original = rope->number("original_max_position_embeddings")};
  names.constant("rope_freqs.weight",
                 llama3_factors(scaling, rope->number("rope_theta", config.number("rope_theta", 10000.0)),
                                head_dim_of(config)));
}

std::vector<int64_t> paired_rows(int64_t heads, int64_t head_dim) {
  std::vector<int64_t> rows;
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t p = 0; p < 2; ++p)
      for (int64_t j = 0; j < head_dim / 2; ++j) rows.push_back(h * head_dim + 2 * j + p);
  return rows;
}

void name_ends(GgufNames& names, const std::string& embedding, const std::string& norm,
               GgufLink::Value norm_value) {
  names.link(embedding, "token_embd.weight");
  names.link({.tensor = norm, .pieces = {{"output_norm.weight"}}, .value = norm_value});
  names.optional("lm_head.weight", "output.weight");
}

void name_attention(const ConfigReader& config, GgufNames& names, const std::string& tensor,
                    const std::string& gguf, bool paired) {
  const auto heads = config.integer("num_attention_heads");
  const auto head_dim = head_dim_of(config);
  const auto name = [&](const std::string& ours, const std::string& theirs, int64_t count) {
    const auto rows = paired && count > 0 ? paired_rows(count, head_dim) : std::vector<int64_t>();
    for (const char* end : {".weight", ".bias"})
      if (names.has(tensor + ours + end, gguf + theirs + end) || std::string_view(end) == ".weight")
        names.link(tensor + ours + end, Piece{.tensor = gguf + theirs + end, .rows = rows});
  };
  name("q_proj", "attn_q", heads);
  name("k_proj", "attn_k", config.integer("num_key_value_heads", heads));
  name("v_proj", "attn_v", 0);
  name("o_proj", "attn_output", 0);
}

void name_gated_mlp(GgufNames& names, const std::string& gguf, const std::string& gate, const std::string& up,
                    const std::string& down) {
  names.linear(gate, gguf + "ffn_gate");
  names.linear(up, gguf + "ffn_up");
  names.linear(down, gguf + "ffn_down");
}

void name_expert(GgufNames& names, const std::string& tensor, const std::string& gguf, int64_t expert,
                 int64_t experts, int64_t out, int64_t in) {
  names.link({.tensor = tensor,
              .pieces = {{.tensor = gguf,
                          .shape = {experts, out, in},
                          .rows = row_range(expert * out, (expert + 1) * out)}},
              .shape = {out, in}});
}

GgufLink conv_link(const std::string& tensor, const std::string& gguf, int64_t channels, int64_t kernel) {
  return {.tensor = tensor,
          .pieces = {{.tensor = gguf, .shape = {channels, kernel}}},
          .shape = {channels, 1, kernel}};
}

void name_mamba(GgufNames& names, const std::string& tensor, const std::string& gguf, int64_t inner,
                int64_t kernel) {
  names.link(
      {.tensor = tensor + "A_log", .pieces = {{gguf + "ssm_a"}}, .value = GgufLink::Value::negative_exp});
  names.link(tensor + "D", gguf + "ssm_d");
  names.link(conv_link(tensor + "conv1d.weight", gguf + "ssm_conv1d.weight", inner, kernel));
  names.optional(tensor + "conv1d.bias", gguf + "ssm_conv1d.bias");
  for (const auto& [ours, theirs] :
       {std::pair{"in_proj", "ssm_in"}, {"x_proj", "ssm_x"}, {"dt_proj", "ssm_dt"}, {"out_proj", "ssm_out"}})
    names.linear(tensor + ours, gguf + theirs);
}

Mamba2Sizes read_mamba2(const GgufMetadata& metadata) {
  return {.heads = metadata.integer(".ssm.time_step_rank"),
          .inner = metadata.integer(".ssm.inner_size"),
          .groups = metadata.integer(".ssm.group_count"),
          .state = metadata.integer(".ssm.state_size"),
          .kernel = metadata.integer(".ssm.conv_kernel")};
}

void write_mamba2(const Mamba2Sizes& sizes, GgufMetadata& metadata) {
  metadata.set_u32(".ssm.time_step_rank", sizes.heads);
  metadata.set_u32(".ssm.inner_size", sizes.inner);
  metadata.set_u32(".ssm.group_count", sizes.groups);
  metadata.set_u32(".ssm.state_size", sizes.state);
  metadata.set_u32(".ssm.conv_kernel", sizes.kernel);
}

void name_mamba2_inside(GgufNames& names, const std::string& tensor, const std::string& gguf,
                        const Mamba2Sizes& s) {
  names.link({.tensor = tensor + "A_log",
              .pieces = {{.tensor = gguf + "ssm_a", .shape = {s.heads, 1}}},
              .shape = {s.heads},
              .value = GgufLink::Value::negative_exp});
  names.link({.tensor = tensor + "D",
              .pieces = {{.tensor = gguf + "ssm_d", .shape = {s.heads, 1}}},
              .shape = {s.heads}});
  names.link(tensor + "dt_bias", gguf + "ssm_dt.bias");
  names.link(conv_link(tensor + "conv1d.weight", gguf + "ssm_conv1d.weight", s.inner + 2 * s.groups * s.state,
                       s.kernel));
  names.optional(tensor + "conv1d.bias", gguf + "ssm_conv1d.bias");
  if (names.has(tensor + "norm.weight", gguf + "ssm_norm.weight"))
    names.link({.tensor = tensor + "norm.weight",
                .pieces = {{.tensor = gguf + "ssm_norm.weight", .shape = {s.groups, s.inner / s.groups}}},
                .shape = {s.inner}});
}

void name_mamba2(GgufNames& names, const std::string& tensor, const std::string& gguf,
                 const Mamba2Sizes& sizes) {
  name_mamba2_inside(names, tensor, gguf, sizes);
  names.linear(tensor + "in_proj", gguf + "ssm_in");
  names.linear(tensor + "out_proj", gguf + "ssm_out");
}

EveryNth every_nth(const std::vector<bool>& wanted, const std::string& where) {
  const auto count = static_cast<int64_t>(wanted.size());
  const auto next = [&](int64_t from) {
    while (from < count && !wanted[static_cast<size_t>(from)]) ++from;
    return from;
  };
  const auto begin = next(0), second = next(begin + 1);
  const auto step = second < count ? second - begin : std::max<int64_t>(count, 1);
  for (int64_t i = 0; i < count; ++i)
    require(wanted[static_cast<size_t>(i)] == (i >= begin && (i - begin) % step == 0),
            "{}: layer {} breaks the pattern of every {} layers from {}", where, i, step, begin);
  return {begin, step};
}

}  // namespace weft::gguf
