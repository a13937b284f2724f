// What architectures share about MLPs and single projections.
#pragma once

#include <string>

#include "io/pretrained/architecture.h"

namespace weft {

// weft's name of an activation that the config names as transformers does ("gelu_pytorch_tanh" -> "gelu_tanh").
// Unsupported, naming key and value, for the activations that have parameters of their own (prelu, xielu).
std::string read_activation(const ConfigReader& config, const ConfigKey& key, const std::string& otherwise);

// The projection `to` ("stack.layers.3.mixer.q") is `from` ("model.layers.3.self_attn.q_proj"): weight, and bias.
void take_linear(Blueprint& out, const std::string& to, const std::string& from, bool bias = false);

// The tensors' names of an MLP. gate "": it has none.
struct MlpNames {
  const char* gate = "gate_proj";
  const char* up = "up_proj";
  const char* down = "down_proj";
};
// The projections of the channel mixer `to` ("stack.layers.3.ffn.") from `from` ("model.layers.3.mlp.").
void take_mlp(Blueprint& out, const std::string& to, const std::string& from, bool bias = false,
              const MlpNames& names = {});

// The same where one tensor of shape [2 hidden, width] holds the rows of the gate and then those of up.
void take_fused_mlp(Blueprint& out, const std::string& to, const std::string& gate_up,
                    const std::string& down, int64_t hidden, int64_t width);

}  // namespace weft
