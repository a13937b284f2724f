// "qwen3next", "qwen35" and "qwen35moe": gated delta nets and gated attention. Norms are kept with the 1 added that the
// checkpoint leaves out, all but the one inside the delta net. The two younger keep the value heads in another order:
// head j of key head g is number j * key_heads + g.
#include "base/error.h"
#include "io/gguf/architectures/shared.h"

namespace weft::gguf {
namespace {

constexpr auto kPlusOne = GgufLink::Value::plus;

void read_delta(const GgufFile& file, const char* model_type, const char* class_name,
                nlohmann::json& config) {
  const auto& metadata = file.metadata();
  read_common(file, model_type, class_name, config);
  read_heads(metadata, config);
  const auto layers = metadata.integer(".block_count") - metadata.integer(".nextn_predict_layers", 0);
  config["num_hidden_layers"] = layers;
  read_rope(file, config, 1e7);
  config["rope_parameters"]["partial_rotary_factor"] =
      metadata.number(".rope.dimension_count") / config["head_dim"].get<double>();
  auto types = nlohmann::json::array();
  for (int64_t i = 0; i < layers; ++i)
    types.push_back(file.contains(block(i) + "ssm_a") ? "linear_attention" : "full_attention");
  config["layer_types"] = types;
  const auto value_heads = metadata.integer(".ssm.time_step_rank"),
             inner = metadata.integer(".ssm.inner_size");
  require(value_heads > 0 && inner % value_heads == 0, "{}: {} heads do not divide the width {}",
          metadata.where(".ssm.time_step_rank"), value_heads, inner);
  config["linear_conv_kernel_dim"] = metadata.integer(".ssm.conv_kernel");
  config["linear_key_head_dim"] = metadata.integer(".ssm.state_size");
  config["linear_num_key_heads"] = metadata.integer(".ssm.group_count");
  config["linear_num_value_heads"] = value_heads;
  config["linear_value_head_dim"] = inner / value_heads;
  config["attention_bias"] = false;
  config["hidden_act"] = "silu";
  if (metadata.has(".feed_forward_length"))
    config["intermediate_size"] = metadata.integer(".feed_forward_length");
  if (metadata.integer(".expert_count", 0) == 0) return;
  config["num_experts"] = metadata.integer(".expert_count");
  config["num_experts_per_tok"] = metadata.integer(".expert_used_count");
  config["moe_intermediate_size"] = metadata.integer(".expert_feed_forward_length");
  config["shared_expert_intermediate_size"] = metadata.integer(".expert_shared_feed_forward_length");
}

void read_qwen3next(const GgufFile& file, nlohmann::json& config) {
  read_delta(file, "qwen3_next", "Qwen3NextForCausalLM", config);
  config["decoder_sparse_step"] = 1;
  config["mlp_only_layers"] = nlohmann::json::array();
  config["norm_topk_prob"] = true;
}

void add_sections(const GgufMetadata& metadata, nlohmann::json& config) {
  auto sections = metadata.integers(".rope.dimension_sections");
  if (sections.size() > 3) sections.resize(3);
  if (sections.empty()) return;
  config["rope_parameters"]["mrope_section"] = sections;
  config["rope_parameters"]["mrope_interleaved"] = true;
}

void read_qwen35(const GgufFile& file, nlohmann::json& config) {
  read_delta(file, "qwen3_5_text", "Qwen3_5ForCausalLM", config);
  add_sections(file.metadata(), config);
}

void read_qwen35moe(const GgufFile& file, nlohmann::json& config) {
  read_delta(file, "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", config);
  config.erase("intermediate_size");
  add_sections(file.metadata(), config);
}

struct DeltaSizes {
  int64_t key_heads, value_heads, key_dim, value_dim, kernel, width;
  explicit DeltaSizes(const ConfigReader& config)
      : key_heads(config.integer("linear_num_key_heads", 16)),
        value_heads(config.integer("linear_num_value_heads", 32)),
        key_dim(config.integer("linear_key_head_dim", 128)),
        value_dim(config.integer("linear_value_head_dim", 128)),
        kernel(config.integer("linear_conv_kernel_dim", 4)),
        width(config.integer("hidden_size")) {}
  int64_t keys() const { return key_heads * key_dim; }
  int64_t values() const { return value_heads * value_dim; }
  int64_t channels() const { return 2 * keys() + values(); }
};

std::vector<bool> delta_layers(const ConfigReader& config) {
  std::vector<bool> linear;
  const auto types = config.texts("layer_types");
  const auto interval = config.integer("full_attention_interval", 4);
  for (int64_t i = 0; i < config.integer("num_hidden_layers"); ++i)
    linear.push_back(types.empty() ? (i + 1) % interval != 0
                                   : types.at(static_cast<size_t>(i)) == "linear_attention");
  return linear;
}

bool is_sparse(const ConfigReader& config) { return config.text("model_type") != "qwen3_5_text"; }

void write_delta(const ConfigReader& config, GgufMetadata& metadata) {
  write_common(config, metadata);
  write_heads(config, metadata);
  write_rope(config, metadata);
  const DeltaSizes sizes(config);
  metadata.set_u32(".ssm.conv_kernel", sizes.kernel);
  metadata.set_u32(".ssm.state_size", sizes.key_dim);
  metadata.set_u32(".ssm.group_count", sizes.key_heads);
  metadata.set_u32(".ssm.time_step_rank", sizes.value_heads);
  metadata.set_u32(".ssm.inner_size", sizes.values());
  std::vector<int64_t> linear;
  for (const bool layer : delta_layers(config)) linear.push_back(layer);
  metadata.set(".attention.recurrent_layers",
               {.kind = GgufKind::array, .element = GgufKind::boolean, .value = linear});
  metadata.set_u32(".full_attention_interval", config.integer("full_attention_interval", 4));
  double partial = config.number("partial_rotary_factor", 0.25);
  std::vector<int64_t> sections;
  if (const auto rope = config.child("rope_parameters")) {
    partial = rope->number("partial_rotary_factor", partial);
    sections = rope->integers("mrope_section");
  }
  metadata.set_u32(".rope.dimension_count",
                   static_cast<int64_t>(static_cast<double>(head_dim_of(config)) * partial));
  if (config.text("model_type") != "qwen3_next") {
    if (sections.empty()) sections = {11, 11, 10};
    sections.resize(4, 0);
    metadata.set_i32s(".rope.dimension_sections", sections);
  }
  if (config.has("intermediate_size"))
    metadata.set_u32(".feed_forward_length", config.integer("intermediate_size"));
  if (!is_sparse(config)) return;
  config.need(config.integer("decoder_sparse_step", 1) == 1 && config.integers("mlp_only_layers").empty(),
              "decoder_sparse_step", "the GGUF architecture has experts in every layer");
  metadata.set_u32(".expert_count", config.integer("num_experts"));
  metadata.set_u32(".expert_used_count", config.integer("num_experts_per_tok"));
  metadata.set_u32(".expert_feed_forward_length", config.integer("moe_intermediate_size"));
  metadata.set_u32(".expert_shared_feed_forward_length", config.integer("shared_expert_intermediate_size"));
}

// qkvz of the checkpoint: per key head its rows of q, k, v and z.
void name_qkvz(const DeltaSizes& s, GgufNames& names, const std::string& from, const std::string& to) {
  std::vector<Piece> pieces;
  const auto group = s.values() / s.key_heads;
  const auto add = [&](const char* tensor, int64_t rows, int64_t begin, int64_t count) {
    pieces.push_back(
        {.tensor = to + tensor, .shape = {rows, s.width}, .rows = row_range(begin, begin + count)});
  };
  for (int64_t h = 0; h < s.key_heads; ++h) {
    add("attn_qkv.weight", s.channels(), h * s.key_dim, s.key_dim);
    add("attn_qkv.weight", s.channels(), s.keys() + h * s.key_dim, s.key_dim);
    add("attn_qkv.weight", s.channels(), 2 * s.keys() + h * group, group);
    add("attn_gate.weight", s.values(), h * group, group);
  }
  names.link({.tensor = from + "in_proj_qkvz.weight",
              .pieces = std::move(pieces),
              .shape = {s.channels() + s.values(), s.width}});
}

// Rows of the value heads after `before` others, `dim` each: row (g, j) of the checkpoint is row (j, g) of the file.
std::vector<int64_t> tiled_rows(const DeltaSizes& s, int64_t before, int64_t dim) {
  auto rows = row_range(0, before);
  const auto repeats = s.value_heads / s.key_heads;
  for (int64_t g = 0; g < s.key_heads; ++g)
    for (int64_t j = 0; j < repeats; ++j)
      for (int64_t d = 0; d < dim; ++d) rows.push_back(before + (j * s.key_heads + g) * dim + d);
  return rows;
}

void name_delta_parts(const DeltaSizes& s, GgufNames& names, const std::string& from, const std::string& to,
                      bool tiled) {
  const auto heads = tiled ? tiled_rows(s, 0, 1) : std::vector<int64_t>();
  names.link({.tensor = from + "A_log",
              .pieces = {{.tensor = to + "ssm_a", .rows = heads}},
              .value = GgufLink::Value::negative_exp});
  names.link(from + "dt_bias", Piece{.tensor = to + "ssm_dt.bias", .rows = heads});
  auto conv = conv_link(from + "conv1d.weight", to + "ssm_conv1d.weight", s.channels(), s.kernel);
  if (tiled) conv.pieces[0].rows = tiled_rows(s, 2 * s.keys(), s.value_dim);
  names.link(std::move(conv));
  names.link(from + "norm.weight", to + "ssm_norm.weight");
  names.link({.tensor = from + "out_proj.weight",
              .pieces = {{to + "ssm_out.weight"}},
              .columns = tiled ? tiled_rows(s, 0, s.value_dim) : std::vector<int64_t>()});
  if (!tiled) return;
  names.link(from + "in_proj_qkv.weight",
             Piece{.tensor = to + "attn_qkv.weight", .rows = tiled_rows(s, 2 * s.keys(), s.value_dim)});
  names.link(from + "in_proj_z.weight",
             Piece{.tensor = to + "attn_gate.weight", .rows = tiled_rows(s, 0, s.value_dim)});
  names.link(from + "in_proj_a.weight", Piece{.tensor = to + "ssm_alpha.weight", .rows = heads});
  names.link(from + "in_proj_b.weight", Piece{.tensor = to + "ssm_beta.weight", .rows = heads});
}

void name_delta_experts(const ConfigReader& config, GgufNames& names, const std::string& mlp,
                        const std::string& to) {
  const auto experts = config.integer("num_experts"), hidden = config.integer("moe_intermediate_size"),
             width = config.integer("hidden_size");
  names.link(mlp + "gate.weight", to + "ffn_gate_inp.weight");
  names.link({.tensor = mlp + "shared_expert_gate.weight",
              .pieces = {{.tensor = to + "ffn_gate_inp_shexp.weight", .shape = {1, width}}},
              .shape = {1, width}});
  for (const char* part : {"gate", "up", "down"}) {
    names.link(fmt::format("{}shared_expert.{}_proj.weight", mlp, part),
               fmt::format("{}ffn_{}_shexp.weight", to, part));
    const bool down = std::string_view(part) == "down";
    for (int64_t e = 0; e < experts; ++e)
      name_expert(names, fmt::format("{}experts.{}.{}_proj.weight", mlp, e, part),
                  fmt::format("{}ffn_{}_exps.weight", to, part), e, experts, down ? width : hidden,
                  down ? hidden : width);
  }
}

void name_delta(const ConfigReader& config, GgufNames& names) {
  const DeltaSizes sizes(config);
  const bool next = config.text("model_type") == "qwen3_next";
  const auto linear = delta_layers(config);
  name_ends(names, "model.embed_tokens.weight", "model.norm.weight", kPlusOne);
  names.pass_over(block(static_cast<int64_t>(linear.size())));  // of the prediction of further tokens
  for (int64_t i = 0; i < static_cast<int64_t>(linear.size()); ++i) {
    const auto from = layer(i), to = block(i), delta = from + "linear_attn.";
    const auto norm = [&](const std::string& ours, const std::string& theirs) {
      names.link({.tensor = from + ours, .pieces = {{to + theirs}}, .value = kPlusOne});
    };
    norm("input_layernorm.weight", "attn_norm.weight");
    norm("post_attention_layernorm.weight", "post_attention_norm.weight");
    if (linear[static_cast<size_t>(i)]) {
      name_delta_parts(sizes, names, delta, to, !next);
      if (next) names.link(delta + "in_proj_ba.weight", to + "ssm_ba.weight");
      if (next && names.reading() && names.has("", to + "ssm_in.weight"))
        names.link(delta + "in_proj_qkvz.weight", to + "ssm_in.weight");  // as earlier converters left it
      else if (next)
        name_qkvz(sizes, names, delta, to);
    } else {
      norm("self_attn.q_norm.weight", "attn_q_norm.weight");
      norm("self_attn.k_norm.weight", "attn_k_norm.weight");
      name_attention(config, names, from + "self_attn.", to, false);
    }
    if (is_sparse(config))
      name_delta_experts(config, names, from + "mlp.", to);
    else
      name_gated_mlp(names, to, from + "mlp.gate_proj", from + "mlp.up_proj", from + "mlp.down_proj");
  }
}

const RegisterGgufArchitecture register_gguf_qwen3next{
    {"qwen3next", {"qwen3_next"}, read_qwen3next, write_delta, name_delta}};
const RegisterGgufArchitecture register_gguf_qwen35{
    {"qwen35", {"qwen3_5_text"}, read_qwen35, write_delta, name_delta}};
const RegisterGgufArchitecture register_gguf_qwen35moe{
    {"qwen35moe", {"qwen3_5_moe_text"}, read_qwen35moe, write_delta, name_delta}};

}  // namespace
}  // namespace weft::gguf
