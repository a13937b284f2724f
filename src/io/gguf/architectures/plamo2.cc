// "plamo2": Mamba-2 with maps of the convolved input and attention in turn. The format has no keys for windows and a
// rotary base of their own; where there are some, the keys of other architectures are written, which llama.cpp does not
// read here.
#include <algorithm>
#include <cmath>

#include "io/gguf/architectures/shared.h"

namespace weft::gguf {
namespace {

bool is_mamba(int64_t i, int64_t layers, int64_t step) {
  return layers <= step / 2 ? i != layers - 1 : i % step != step / 2;
}

// The mamba_step of a pattern; 0: all layers are attention.
int64_t step_of(const std::vector<int64_t>& kv_heads, const std::string& where) {
  const auto layers = static_cast<int64_t>(kv_heads.size());
  const auto fits = [&](int64_t step) {
    for (int64_t i = 0; i < layers; ++i)
      if (is_mamba(i, layers, step) != (kv_heads[static_cast<size_t>(i)] == 0)) return false;
    return true;
  };
  if (std::find(kv_heads.begin(), kv_heads.end(), 0) == kv_heads.end()) return 0;
  for (int64_t step = 2; step <= 2 * layers; ++step)
    if (fits(step)) return step;
  throw InputError(fmt::format("{}: [{}] is no pattern of attention every so many layers", where,
                               fmt::join(kv_heads, ", ")));
}

// Which layers see all tokens: those that slide are marked, all of them where there is a window and no mark.
void read_windows(const GgufMetadata& metadata, const std::vector<int64_t>& kv_heads,
                  nlohmann::json& config) {
  const auto layers = static_cast<int64_t>(kv_heads.size());
  std::vector<int64_t> slides(kv_heads.size(), 0);
  if (metadata.has(".attention.sliding_window")) {
    config["attention_window_size"] = metadata.integer(".attention.sliding_window") - 1;
    slides = metadata.has(".attention.sliding_window_pattern")
                 ? metadata.per_layer(".attention.sliding_window_pattern", layers)
                 : std::vector<int64_t>(kv_heads.size(), 1);
  }
  auto full = nlohmann::json::array();
  for (size_t i = 0; i < kv_heads.size(); ++i)
    if (kv_heads[i] > 0 && slides[i] == 0) full.push_back(i);
  config["full_attention_idx"] = full;
}

void read_plamo2(const GgufFile& file, nlohmann::json& config) {
  const auto& metadata = file.metadata();
  read_common(file, "plamo2", "Plamo2ForCausalLM", config);
  read_heads(metadata, config);
  const auto layers = metadata.integer(".block_count");
  const auto head_dim = config["head_dim"].get<int64_t>(), inner = metadata.integer(".ssm.inner_size"),
             mamba_heads = metadata.integer(".ssm.time_step_rank");
  config["hidden_size_per_head"] = head_dim;
  config.erase("head_dim");
  require(inner == mamba_heads * head_dim, "{}: expected {} heads of {} channels",
          metadata.where(".ssm.inner_size"), mamba_heads, head_dim);
  const auto kv_heads = metadata.per_layer(".attention.head_count_kv", layers);
  const auto step = step_of(kv_heads, metadata.where(".attention.head_count_kv"));
  config["mamba_enabled"] = step > 0;
  if (step > 0) config["mamba_step"] = step;
  read_windows(metadata, kv_heads, config);
  const auto base = metadata.number(".rope.freq_base", 10000.0);
  config["rope_theta"] = base;
  config["rope_local_theta"] = metadata.number(".rope.freq_base_swa", base);
  config["mamba_num_heads"] = mamba_heads;
  config["mamba_d_state"] = metadata.integer(".ssm.state_size");
  config["mamba_d_conv"] = metadata.integer(".ssm.conv_kernel");
  config["intermediate_size"] = metadata.integer(".feed_forward_length");
}

// What decides about layers, with the defaults of the model's configuration class.
struct Plamo2Sizes {
  int64_t layers, step, heads, kv_heads, head_dim, mamba_heads;
  bool with_mamba;
  std::vector<int64_t> full;
  explicit Plamo2Sizes(const ConfigReader& config)
      : layers(config.integer("num_hidden_layers", 32)),
        step(config.integer("mamba_step", 2)),
        heads(config.integer("num_attention_heads", 32)),
        kv_heads(config.integer("num_key_value_heads", 4)),
        head_dim(config.integer("hidden_size_per_head", 128)),
        mamba_heads(config.integer("mamba_num_heads", 64)),
        with_mamba(config.flag("mamba_enabled", true)),
        full(config.integers("full_attention_idx")) {}
  bool mamba(int64_t i) const { return with_mamba && is_mamba(i, layers, step); }
  bool slides(int64_t i) const { return !mamba(i) && std::find(full.begin(), full.end(), i) == full.end(); }
};

void write_windows(const ConfigReader& config, const Plamo2Sizes& sizes, GgufMetadata& metadata) {
  const auto base = config.number("rope_theta", 10000.0), local = config.number("rope_local_theta", 10000.0);
  std::vector<int64_t> slides;
  for (int64_t i = 0; i < sizes.layers; ++i) slides.push_back(sizes.slides(i) ? 1 : 0);
  const auto sliding = std::count(slides.begin(), slides.end(), 1);
  int64_t attention = 0;
  for (int64_t i = 0; i < sizes.layers; ++i) attention += sizes.mamba(i) ? 0 : 1;
  // One base serves all layers where it can: llama.cpp knows no other.
  metadata.set_f32(".rope.freq_base", sliding == attention ? local : base);
  if (sliding == 0) return;
  metadata.set_u32(".attention.sliding_window", config.integer("attention_window_size", 2048) + 1);
  if (sliding == attention) return;
  metadata.set_i32s(".attention.sliding_window_pattern", slides);
  metadata.set_f32(".rope.freq_base_swa", local);
}

void write_plamo2(const ConfigReader& config, GgufMetadata& metadata) {
  write_common(config, metadata);
  const Plamo2Sizes sizes(config);
  std::vector<int64_t> heads, kv_heads;
  for (int64_t i = 0; i < sizes.layers; ++i) {
    heads.push_back(sizes.mamba(i) ? 0 : sizes.heads);
    kv_heads.push_back(sizes.mamba(i) ? 0 : sizes.kv_heads);
  }
  metadata.set_i32s(".attention.head_count", heads);
  metadata.set_i32s(".attention.head_count_kv", kv_heads);
  metadata.set_u32(".attention.key_length", sizes.head_dim);
  metadata.set_u32(".attention.value_length", sizes.head_dim);
  write_windows(config, sizes, metadata);
  metadata.set_u32(".ssm.state_size", config.integer("mamba_d_state", 64));
  metadata.set_u32(".ssm.conv_kernel", config.integer("mamba_d_conv", 4));
  metadata.set_u32(".ssm.time_step_rank", sizes.mamba_heads);
  metadata.set_u32(".ssm.inner_size", sizes.mamba_heads * sizes.head_dim);
  metadata.set_u32(".ssm.group_count", 0);
  metadata.set_u32(".feed_forward_length", config.integer("intermediate_size", 13312));
}

void name_plamo2_mamba(const ConfigReader& config, const Plamo2Sizes& sizes, GgufNames& names,
                       const std::string& from, const std::string& to) {
  names.link({.tensor = from + "A_log", .pieces = {{to + "ssm_a"}}, .value = GgufLink::Value::negative_exp});
  names.link(conv_link(from + "conv1d.weight", to + "ssm_conv1d.weight", sizes.mamba_heads * sizes.head_dim,
                       config.integer("mamba_d_conv", 4)));
  for (const auto& [ours, theirs] : {std::pair{"in_proj.weight", "ssm_in.weight"},
                                     {"bcdt_proj.weight", "ssm_x.weight"},
                                     {"dt_proj.weight", "ssm_dt.weight"},
                                     {"dt_bias", "ssm_dt.bias"},
                                     {"D", "ssm_d"},
                                     {"dt_norm_weight", "ssm_dt_norm"},
                                     {"B_norm_weight", "ssm_b_norm"},
                                     {"C_norm_weight", "ssm_c_norm"},
                                     {"out_proj.weight", "ssm_out.weight"}})
    names.link(from + ours, to + theirs);
}

void name_plamo2_attention(const Plamo2Sizes& sizes, GgufNames& names, const std::string& from,
                           const std::string& to) {
  names.link(from + "qkv_proj.weight", to + "attn_qkv.weight");
  names.link(from + "o_proj.weight", to + "attn_output.weight");
  const auto norm = [&](const char* ours, const char* theirs, int64_t heads) {
    const std::vector<int64_t> shape{heads, sizes.head_dim};
    names.link({.tensor = from + ours, .pieces = {{.tensor = to + theirs, .shape = shape}}, .shape = shape});
  };
  norm("q_weight", "attn_q_norm.weight", sizes.heads);
  norm("k_weight", "attn_k_norm.weight", sizes.kv_heads);
}

// Norms are stored with their offsets added; those behind the branches have no ".weight" to their names.
void name_plamo2(const ConfigReader& config, GgufNames& names) {
  name_ends(names, "model.embed_tokens.weight", "model.norm.weight", GgufLink::Value::plus);
  const Plamo2Sizes sizes(config);
  for (int64_t i = 0; i < sizes.layers; ++i) {
    const auto from = fmt::format("model.layers.layers.{}.", i), to = block(i);
    const auto norm = [&](const char* ours, const char* theirs, double offset) {
      names.link({.tensor = from + ours,
                  .pieces = {{to + theirs}},
                  .value = GgufLink::Value::plus,
                  .offset = offset});
    };
    norm("pre_mixer_norm.weight", "attn_norm.weight", 1);
    norm("post_mixer_norm.weight", "post_attention_norm", 1.0 / 5);
    norm("pre_mlp_norm.weight", "ffn_norm.weight", 1);
    norm("post_mlp_norm.weight", "post_ffw_norm", 1 / std::pow(5, 1.5));
    if (sizes.mamba(i))
      name_plamo2_mamba(config, sizes, names, from + "mixer.", to);
    else
      name_plamo2_attention(sizes, names, from + "mixer.", to);
    names.link(from + "mlp.gate_up_proj.weight", to + "ffn_up.weight");
    names.link(from + "mlp.down_proj.weight", to + "ffn_down.weight");
  }
}

const RegisterGgufArchitecture register_gguf_plamo2{
    {"plamo2", {"plamo2"}, read_plamo2, write_plamo2, name_plamo2}};

}  // namespace
}  // namespace weft::gguf
