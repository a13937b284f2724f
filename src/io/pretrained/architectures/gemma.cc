// Gemma 2 (Gemma team 2024, arXiv:2408.00118) and the text model of Gemma 3 (2025, arXiv:2503.19786).
#include <cmath>

#include "io/pretrained/architectures/decoder.h"

namespace weft {
namespace {

// A factor that is off when the key is null, and `absent` when it is not there.
double cap_of(const ConfigReader& config, const char* key, double absent) {
  return config.number(key, config.is_null(key) ? 0 : absent);
}

// What both have in common; blocks are not added yet.
Decoder read_gemma(const ConfigReader& config, const TensorNames& tensors, Blueprint& out, bool qk_norm,
                   double logit_cap) {
  config.need(!config.flag("use_bidirectional_attention", false), "use_bidirectional_attention",
              "expected false");
  const bool bias = config.flag("attention_bias", false);
  Decoder decoder(config, tensors,
                  {.qkv_bias = bias,
                   .output_bias = bias,
                   .qk_norm = qk_norm,
                   .norm = "rms_zero_centered",
                   .norm_placement = "sandwich",
                   .tied = true,
                   .kv_heads = 4,
                   .head_dim = 256,
                   .activation_key = "hidden_activation",
                   .activation = "gelu_pytorch_tanh"},
                  out);
  out.model.embedding_scale = std::sqrt(static_cast<double>(out.model.width));
  out.model.logit_softcap = cap_of(config, "final_logit_softcapping", logit_cap);
  return decoder;
}

double score_scale(const ConfigReader& config) {
  return 1 / std::sqrt(config.number("query_pre_attn_scalar", 256));
}

void describe_gemma2(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  auto decoder = read_gemma(config, tensors, out, false, 30);
  const auto rope = read_rope(config, decoder.head_dim(), {.positions = 8192});
  const Node own =
      fields("scale", score_scale(config), "softcap", cap_of(config, "attn_logit_softcapping", 50));
  for (const int64_t window : read_windows(config, decoder.layers(), read_window(config, 4096),
                                           [](int64_t layer) { return layer % 2 == 0; }))
    decoder.add_block(rope, window, own);
}

// Settings within rope_parameters are for types of layers; those of older files, beside it, are for full attention.
RopeSettings gemma3_rope(const ConfigReader& config, int64_t head_dim, const char* type,
                         RopeDefaults defaults) {
  defaults.positions = 131072;
  const auto nested = config.child("rope_parameters");
  const bool given = nested && nested->has(type);
  const bool sliding = std::string(type) == "sliding_attention";
  if (given || (!sliding && !nested)) return read_rope(config, head_dim, defaults, type);
  return {.theta = config.number(defaults.theta_key, defaults.theta)};
}

void describe_gemma3(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  auto decoder = read_gemma(config, tensors, out, true, 0);
  const auto full = gemma3_rope(config, decoder.head_dim(), "full_attention", {.theta = 1e6});
  const auto sliding =
      gemma3_rope(config, decoder.head_dim(), "sliding_attention", {.theta_key = "rope_local_base_freq"});
  config.need(!(config.has("rope_scaling") && config.has("rope_parameters")), "rope_scaling",
              "expected within rope_parameters");
  const int64_t pattern = config.integer({"sliding_window_pattern", "_sliding_window_pattern"}, 6);
  const Node own = fields("scale", score_scale(config));
  for (const int64_t window : read_windows(config, decoder.layers(), read_window(config, 4096),
                                           [&](int64_t layer) { return (layer + 1) % pattern != 0; }))
    decoder.add_block(window > 0 ? sliding : full, window, own);
}

const RegisterArchitecture register_gemma2{
    {"gemma2", {"hidden_act", "cache_implementation", "sliding_window_size"}, describe_gemma2}};
const RegisterArchitecture register_gemma3{
    {"gemma3_text", {"hidden_act", "attn_logit_softcapping", "cache_implementation"}, describe_gemma3}};

}  // namespace
}  // namespace weft
