// Qwen2 (Yang et al. 2024, arXiv:2407.10671) and Qwen3 (Yang et al. 2025, arXiv:2505.09388).
#include "io/pretrained/architectures/decoder.h"

namespace weft {
namespace {

void add_blocks(const ConfigReader& config, Decoder& decoder) {
  const auto rope = read_rope(config, decoder.head_dim(), {.positions = 32768});
  const int64_t window = read_window(config, 4096), first = config.integer("max_window_layers", 28);
  const bool slides = config.flag("use_sliding_window", false);
  for (const int64_t w : read_windows(config, decoder.layers(), slides ? window : 0,
                                      [&](int64_t layer) { return layer >= first; }))
    decoder.add_block(rope, w);
}

void describe_qwen2(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  Decoder decoder(config, tensors, {.qkv_bias = true, .kv_heads = 32}, out);
  add_blocks(config, decoder);
}

void describe_qwen3(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const bool bias = config.flag("attention_bias", false);
  Decoder decoder(config, tensors,
                  {.qkv_bias = bias, .output_bias = bias, .qk_norm = true, .kv_heads = 32, .head_dim = 128},
                  out);
  add_blocks(config, decoder);
}

const RegisterArchitecture register_qwen2{
    {"qwen2", {"use_mrope", "dual_chunk_attention_config"}, describe_qwen2}};
const RegisterArchitecture register_qwen3{{"qwen3", {}, describe_qwen3}};

}  // namespace
}  // namespace weft
