// Phi-3 (Abdin et al. 2024, arXiv:2404.14219): Llama with fused projections and LongRoPE.
#include "io/pretrained/architectures/decoder.h"

namespace weft {
namespace {

void describe_phi3(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  Decoder decoder(config, tensors, {.fused = true, .eps = 1e-5}, out);
  const auto rope =
      read_rope(config, decoder.head_dim(),
                {.partial = 1.0, .positions = 4096, .original_positions = 4096, .yarn_is_longrope = true});
  const int64_t window = read_window(config, 0);
  for (int64_t i = 0; i < decoder.layers(); ++i) decoder.add_block(rope, window);
}

// The last five stand in published files; nothing reads them.
const RegisterArchitecture register_phi3{{"phi3",
                                          {"resid_pdrop", "embd_pdrop", "attention_bias", "full_attn_mod",
                                           "interpolate_factor", "lm_head_bias", "mlp_bias"},
                                          describe_phi3}};

}  // namespace
}  // namespace weft
