// OLMo 2 (OLMo team 2024, arXiv:2501.00656): norms behind the branches, and over all heads of q and of k.
#include "io/pretrained/architectures/decoder.h"

namespace weft {
namespace {

void describe_olmo2(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  const bool bias = config.flag("attention_bias", false);
  Decoder decoder(config, tensors,
                  {.qkv_bias = bias,
                   .output_bias = bias,
                   .qk_norm = true,
                   .qk_norm_over = "all",
                   .norm_placement = "branch",
                   .eps = 1e-5},
                  out);
  const auto rope = read_rope(config, decoder.head_dim());
  for (int64_t i = 0; i < decoder.layers(); ++i) decoder.add_block(rope, 0);
}

const RegisterArchitecture register_olmo2{{"olmo2", {}, describe_olmo2}};

}  // namespace
}  // namespace weft
