// Llama (Touvron et al. 2023, arXiv:2302.13971) and Mistral (Jiang et al. 2023, arXiv:2310.06825).
#include "io/pretrained/architectures/decoder.h"

namespace weft {
namespace {

void describe_llama(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const bool bias = config.flag("attention_bias", false);
  Decoder decoder(config, tensors,
                  {.qkv_bias = bias, .output_bias = bias, .mlp_bias = config.flag("mlp_bias", false)}, out);
  const auto rope = read_rope(config, decoder.head_dim());
  for (int64_t i = 0; i < decoder.layers(); ++i) decoder.add_block(rope, 0);
}

void describe_mistral(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  Decoder decoder(config, tensors, {.kv_heads = 8}, out);
  const auto rope = read_rope(config, decoder.head_dim(), {.positions = 4096 * 32});
  const int64_t window = read_window(config, 4096);
  for (int64_t i = 0; i < decoder.layers(); ++i) decoder.add_block(rope, window);
}

const RegisterArchitecture register_llama{
    {"llama",
     {"pretraining_tp", "rope_interleaved", "is_llama_config", "transformers.js_config"},
     describe_llama}};
const RegisterArchitecture register_mistral{{"mistral", {}, describe_mistral}};

}  // namespace
}  // namespace weft
