// What the architectures with Gated DeltaNet layers share: sizes, the mixer's options, and how its rows stand in the
// file.
#pragma once

#include "io/pretrained/architectures/mlp.h"

namespace weft {

struct DeltaConfig {
  int64_t width = 0;
  int64_t heads = 0, head_dim = 0;         // of keys
  int64_t value_heads = 0, value_dim = 0;  // of values
  int64_t conv = 4;
  std::string activation;  // behind the convolution
  int64_t keys() const { return heads * head_dim; }
  int64_t values() const { return value_heads * value_dim; }
  int64_t channels() const { return 2 * keys() + values(); }  // of the convolution
};

// The keys linear_*; those of `otherwise` where the config is silent.
DeltaConfig read_delta(const ConfigReader& config, const DeltaConfig& otherwise);

// The mixer gated_delta_net, without what a layer has around it.
Node delta_mixer(const DeltaConfig& delta);

// Projections that are each a tensor of their own or rows [q | k | v] of in_proj_qkv: Qwen3.5.
void take_delta_separate(Blueprint& out, const std::string& mixer, const std::string& from);
// in_proj_qkvz and in_proj_ba, whose rows are grouped by key head: q, k, then v and z of its value heads; b, then a.
void take_delta_grouped(Blueprint& out, const std::string& mixer, const std::string& from,
                        const DeltaConfig& delta);
// One in_proj with the rows [q | k | v | z | b | a].
void take_delta_joined(Blueprint& out, const std::string& mixer, const std::string& from,
                       const DeltaConfig& delta);

// What all of them have: A_log, dt_bias, the norm of the read-out (`norm`), the output projection (`output`).
void take_delta_rest(Blueprint& out, const std::string& mixer, const std::string& from,
                     const std::string& norm, const std::string& output);
// One convolution [channels, 1, W] for q, k and v.
void take_delta_conv(Blueprint& out, const std::string& mixer, const std::string& tensor,
                     const DeltaConfig& delta);

// layer_types, or every `full_attention_interval`-th layer "full_attention" and the others "linear_attention". Older
// files say "attention" and "mamba". Unsupported for a type not among `known`.
std::vector<std::string> read_linear_layer_types(const ConfigReader& config, int64_t layers,
                                                 const std::vector<std::string>& known,
                                                 int64_t full_attention_interval = 4);

}  // namespace weft
