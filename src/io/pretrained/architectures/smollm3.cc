// SmolLM3 (Hugging Face 2025): Llama in which every fourth layer does without rotary positions.
#include "base/error.h"
#include "io/pretrained/architectures/decoder.h"

namespace weft {
namespace {

// For each layer whether it has rotary positions: the key no_rope_layers has 1 where it has.
std::vector<int64_t> rotated_layers(const ConfigReader& config, int64_t layers) {
  auto rotated = config.integers("no_rope_layers");
  const int64_t interval = config.integer("no_rope_layer_interval", 4);
  if (rotated.empty())
    for (int64_t i = 0; i < layers; ++i) rotated.push_back((i + 1) % interval != 0);
  require(static_cast<int64_t>(rotated.size()) >= layers, "{}: {} entries for {} layers",
          config.where("no_rope_layers"), rotated.size(), layers);
  return rotated;
}

void describe_smollm3(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const bool bias = config.flag("attention_bias", false);
  Decoder decoder(config, tensors,
                  {.qkv_bias = bias,
                   .output_bias = bias,
                   .mlp_bias = config.flag("mlp_bias", false),
                   .tied = true,
                   .kv_heads = 4},
                  out);
  const auto rope = read_rope(config, decoder.head_dim(), {.theta = 2e6, .positions = 32768});
  const auto rotated = rotated_layers(config, decoder.layers());
  const bool slides = config.flag("use_sliding_window", false);
  const auto windows = read_windows(config, decoder.layers(), slides ? read_window(config, 0) : 0,
                                    [&](int64_t i) { return !rotated[static_cast<size_t>(i)]; });
  config.ignore({"sliding_window"});
  for (size_t i = 0; i < windows.size(); ++i)
    decoder.add_block(rotated[i] ? rope : RopeSettings{}, windows[i]);
}

const RegisterArchitecture register_smollm3{
    {"smollm3", {"max_window_layers", "pretraining_tp", "transformers.js_config"}, describe_smollm3}};

}  // namespace
}  // namespace weft
