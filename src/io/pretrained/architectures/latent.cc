#include "io/pretrained/architectures/latent.h"

#include <cmath>

#include "base/error.h"

namespace weft {

void LatentConfig::read(const ConfigReader& config) {
  heads = config.integer("num_attention_heads", heads);
  const int64_t key_heads = config.integer("num_key_value_heads", heads);
  config.need(key_heads == heads, "num_key_value_heads", "expected as many as num_attention_heads");
  latent = config.integer("kv_lora_rank", latent);
  query_latent = config.integer("q_lora_rank", config.is_null("q_lora_rank") ? 0 : query_latent);
  head_dim = config.integer("qk_nope_head_dim", head_dim);
  rope_head_dim = config.integer("qk_rope_head_dim", rope_head_dim);
  value_dim = config.integer("v_head_dim", value_dim);
  bias = config.flag("attention_bias", bias);
  config.ignore({"head_dim", "qk_head_dim"});  // follow from the others
}

Node LatentConfig::mixer(const RopeSettings& rope, bool interleaved) const {
  const double scale = rope.mscale * rope.mscale / std::sqrt(static_cast<double>(head_dim + rope_head_dim));
  Node node = fields("mixer", "mla", "heads", heads, "latent", latent, "query_latent", query_latent,
                     "head_dim", head_dim, "rope_head_dim", rope_head_dim, "value_dim", value_dim, "scale",
                     scale, "bias", bias, "output_bias", bias, "rope_interleaved", interleaved);
  rope.set(node);
  return node;
}

void LatentConfig::take(Blueprint& out, const std::string& mixer, const std::string& from,
                        const std::string& output) const {
  if (query_latent > 0) {
    take_linear(out, mixer + "q_in", from + "q_a_proj", bias);
    out.take(mixer + "q_norm.weight", from + "q_a_layernorm.weight");
    take_linear(out, mixer + "q_out", from + "q_b_proj");
  } else {
    take_linear(out, mixer + "q", from + "q_proj");
  }
  take_linear(out, mixer + "kv_in", from + "kv_a_proj_with_mqa", bias);
  out.take(mixer + "kv_norm.weight", from + "kv_a_layernorm.weight");
  take_linear(out, mixer + "kv_out", from + "kv_b_proj");
  take_linear(out, mixer + "out", from + output, bias);
}

void describe_frame(const ConfigReader& config, const TensorNames& tensors, const std::string& embedding,
                    double eps, bool may_tie, int64_t layers, int64_t extra, Blueprint& out) {
  out.model.vocab = config.integer("vocab_size");
  out.model.width = config.integer("hidden_size");
  out.model.norm_eps = eps;
  const bool tied = config.flag("tie_word_embeddings", false);
  out.model.tie = may_tie && !tensors.has("lm_head.weight", !tied);
  out.take("embedding.weight", "model." + embedding + ".weight");
  out.take("norm.weight", "model.norm.weight");
  if (!out.model.tie) out.take("head.weight", "lm_head.weight");
  extra = config.integer({"num_nextn_predict_layers", "num_mtp_layers"}, extra);
  for (int64_t i = layers; i < layers + extra; ++i) out.pass_over(fmt::format("model.layers.{}.", i));
  out.pass_over("mtp.");
}

}  // namespace weft
