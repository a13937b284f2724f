// RWKV-4 as transformers holds it. Peng et al. 2023, arXiv:2305.13048.
//
// With rescale_every n, transformers halves the stream behind every n-th block and divides what later blocks add to it
// by the same power of two, so that fp16 does not overflow. The layers' scales say that here; tensors stay as they are.
#include <cmath>

#include "io/pretrained/architectures/mlp.h"

namespace weft {
namespace {

constexpr double kRwkvFinalNormEps = 1e-5;  // whatever layer_norm_epsilon is

void take_token_mix(Blueprint& out, const std::string& to, const std::string& from, int64_t width) {
  out.take(to, Piece{.tensor = from, .shape = {1, 1, width}});
}

struct RwkvSizes {
  int64_t width, inner, hidden;
  double eps;
};

void add_rwkv_block(Blueprint& out, const RwkvSizes& s, const std::string& from, double branch_scale,
                    double halving) {
  const auto att = out.add_layer(fields("mixer", "rwkv4", "inner", s.inner, "mix_current", true, "norm",
                                        "layer", "norm_eps", s.eps, "residual_scale", branch_scale));
  take_linear(out, att + "mixer_norm", from + "ln1", true);
  const auto attention = from + "attention.";
  out.take(att + "mixer.decay", attention + "time_decay");
  out.take(att + "mixer.bonus", attention + "time_first");
  for (const auto& [ours, theirs] : {std::pair{"k", "key"}, {"v", "value"}, {"r", "receptance"}}) {
    take_token_mix(out, att + "mixer.mix_" + ours, attention + "time_mix_" + theirs, s.width);
    take_linear(out, att + "mixer." + ours, attention + theirs);
  }
  take_linear(out, att + "mixer.out", attention + "output");

  const auto ffn = out.add_layer(fields("mixer", "rwkv_channel_mix", "hidden", s.hidden, "mix_current", true,
                                        "norm", "layer", "norm_eps", s.eps, "residual_scale",
                                        branch_scale * halving, "skip_scale", halving));
  take_linear(out, ffn + "mixer_norm", from + "ln2", true);
  const auto forward = from + "feed_forward.";
  for (const auto& [ours, theirs] : {std::pair{"k", "key"}, {"r", "receptance"}}) {
    take_token_mix(out, ffn + "mixer.mix_" + ours, forward + "time_mix_" + theirs, s.width);
    take_linear(out, ffn + "mixer." + ours, forward + theirs);
  }
  take_linear(out, ffn + "mixer.v", forward + "value");
}

void describe_rwkv(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const auto width = config.integer("hidden_size", 4096);
  const RwkvSizes sizes{.width = width,
                        .inner = config.integer("attention_hidden_size", width),
                        .hidden = config.integer("intermediate_size", 4 * width),
                        .eps = config.number("layer_norm_epsilon", 1e-5)};
  const auto rescale = config.integer("rescale_every", 6);
  out.model.vocab = config.integer("vocab_size", 50277);
  out.model.width = width;
  out.model.norm = out.model.embedding_norm = "layer";
  out.model.norm_eps = kRwkvFinalNormEps;
  out.model.embedding_norm_eps = sizes.eps;
  out.model.tie = !tensors.has("head.weight", !config.flag("tie_word_embeddings", false));
  out.take("embedding.weight", "rwkv.embeddings.weight");
  take_linear(out, "embedding_norm", "rwkv.blocks.0.pre_ln", true);
  take_linear(out, "norm", "rwkv.ln_out", true);
  if (!out.model.tie) out.take("head.weight", "head.weight");

  const auto blocks = config.integer("num_hidden_layers", 32);
  for (int64_t i = 0; i < blocks; ++i) {
    const bool halves = rescale > 0 && (i + 1) % rescale == 0;
    const double scale = rescale > 0 ? std::ldexp(1.0, -static_cast<int>(i / rescale)) : 1.0;
    add_rwkv_block(out, sizes, fmt::format("rwkv.blocks.{}.", i), scale, halves ? 0.5 : 1.0);
  }
}

const RegisterArchitecture register_rwkv{{"rwkv", {"context_length"}, describe_rwkv}};

}  // namespace
}  // namespace weft
