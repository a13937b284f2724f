// Mixtral. Jiang et al. 2024, arXiv:2401.04088.
#include "io/pretrained/architectures/decoder.h"
#include "io/pretrained/architectures/moe.h"

namespace weft {
namespace {

void describe_mixtral(const ConfigReader& config, const TensorNames& tensors, Blueprint& out) {
  Decoder decoder(config, tensors, {.eps = 1e-5, .kv_heads = 8}, out);
  const auto rope = read_rope(config, decoder.head_dim(), {.theta = 1e6, .positions = 4096 * 32});
  const int64_t window = read_window(config, 0);
  const Node experts = mixtral_experts(config, decoder.hidden(), decoder.activation());
  const ExpertSizes sizes{config.integer({"num_local_experts", "num_experts"}, 8), decoder.hidden(),
                          decoder.width()};
  const FeedForward ffn{experts, [&](const std::string& to, const std::string& from) {
                          take_mixtral_experts(out, tensors, to, from, sizes);
                        }};
  for (int64_t i = 0; i < decoder.layers(); ++i) decoder.add_block(rope, window, Node::map(), &ffn);
}

const RegisterArchitecture register_mixtral{{"mixtral", {}, describe_mixtral}};

}  // namespace
}  // namespace weft
