// What architectures share about mixtures of experts.
#pragma once

#include <string>

#include "io/pretrained/architectures/mlp.h"

namespace weft {

// The experts of the channel mixer `to` ("stack.layers.3.ffn.") from `from` ("model.layers.3.mlp.experts."): either one
// set of projections for each expert, `from`N.gate_proj.weight, or the stacks `from`gate_up_proj [E, 2 I, D] (up_proj
// [E, I, D] without a gate) and `from`down_proj [E, D, I], whichever the file has; without a file the first, or the stacks where `stacked`.
struct ExpertSizes {
  int64_t experts, hidden, width;
  bool stacked = false;
};
void take_experts(Blueprint& out, const TensorNames& tensors, const std::string& to, const std::string& from,
                  const ExpertSizes& sizes, const MlpNames& names = {});

// Of Mixtral and MiniMax: the softmax over the chosen experts, in block_sparse_moe, each expert w1, w3 and w2.
Node mixtral_experts(const ConfigReader& config, int64_t hidden, const std::string& activation);
void take_mixtral_experts(Blueprint& out, const TensorNames& tensors, const std::string& to,
                          const std::string& from, const ExpertSizes& sizes);

// Routing of DeepSeek-V3 and its kin: sigmoids, a bias that counts for the choice only, groups of experts, and an MLP
// that all tokens share. Keys in all their spellings; the fields hold what the configuration class has for absent ones.
struct GroupedExperts {
  int64_t experts = 256, top_k = 8, hidden = 2048, shared = 1, groups = 8, top_groups = 4;
  bool normalise = true;
  double scale = 2.5;
  void read(const ConfigReader& config);
  Node node(const std::string& activation) const;  // the channel mixer
};
// From `from` ("model.layers.3.mlp."): gate, experts and shared_experts. `bias` is what new files call the bias for the
// choice; gate.e_score_correction_bias is known too.
void take_grouped_experts(Blueprint& out, const TensorNames& tensors, const std::string& to,
                          const std::string& from, const GroupedExperts& experts, int64_t width,
                          const MlpNames& names = {}, const char* bias = "gate.e_score_correction_bias");

// The blocks with a mixture: mlp_layer_types ("sparse", else "dense"), or all but the first `first_k_dense_replace`.
std::vector<bool> read_sparse_layers(const ConfigReader& config, int64_t layers, int64_t first_dense);

}  // namespace weft
