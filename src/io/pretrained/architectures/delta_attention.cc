#include "io/pretrained/architectures/delta_attention.h"

namespace weft {

Node DeltaAttention::mixer(const ConfigReader& config, const std::string& activation) const {
  const ConfigKey width{"linear_conv_kernel_dim", "short_conv_kernel_size", "linear_attn_config"};
  config.need(conv >= 2 && conv <= 16, width, "expected a convolution over 2 to 16 tokens");
  return fields("mixer", "kda", "heads", heads, "head_dim", head_dim, "conv", conv, "rank", head_dim,
                "full_decay", !low_rank, "full_gate", !low_rank, "gate_bias", false, "decay_bound",
                decay_bound, "activation", activation);
}

void DeltaAttention::take(Blueprint& out, const TensorNames& tensors, const std::string& mixer,
                          const std::string& from, const std::vector<int64_t>& a_log,
                          const std::string& output, int64_t width) const {
  const int64_t size = heads * head_dim;
  std::vector<Piece> qkv, taps;
  for (const char* name : {"q", "k", "v"}) {
    qkv.push_back({.tensor = from + name + "_proj.weight", .shape = {size, width}});
    taps.push_back({.tensor = from + name + "_conv1d.weight", .shape = {size, 1, conv}});
  }
  out.take(mixer + "qkv.weight", std::move(qkv));
  if (tensors.has(from + "conv1d.weight", false))
    taps = {{.tensor = from + "conv1d.weight", .shape = {3 * size, 1, conv}}};
  out.take(mixer + "conv.weight", std::move(taps));
  take_linear(out, mixer + "beta", from + "b_proj");
  const auto named = [&](const char* name) {
    return tensors.pick({from + name, from + "forget_gate." + name});
  };
  out.take(mixer + "A_log", Piece{.tensor = named("A_log"), .shape = a_log});
  out.take(mixer + "dt_bias", named("dt_bias"));
  if (low_rank) {
    out.take(mixer + "decay_in.weight", named("f_a_proj.weight"));
    out.take(mixer + "decay_out.weight", named("f_b_proj.weight"));
    take_linear(out, mixer + "gate_in", from + "g_a_proj");
    take_linear(out, mixer + "gate_out", from + "g_b_proj");
  } else {
    out.take(mixer + "decay.weight", named("f_proj.weight"));
    take_linear(out, mixer + "gate", from + "g_proj");
  }
  out.take(mixer + "norm.weight", from + "o_norm.weight");
  take_linear(out, mixer + "out", from + output);
}

}  // namespace weft
