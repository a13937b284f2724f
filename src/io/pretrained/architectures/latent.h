// What the architectures with multi-head latent attention share: sizes, the mixer's options, the tensors' names.
#pragma once

#include "io/pretrained/architectures/mlp.h"
#include "io/pretrained/architectures/rope_config.h"

namespace weft {

// The fields hold what the configuration class has for absent keys.
struct LatentConfig {
  int64_t heads = 128, latent = 512, query_latent = 1536, head_dim = 128, rope_head_dim = 64, value_dim = 128;
  bool bias = false;
  // q_lora_rank null means no latent of the queries. Unsupported where keys have fewer heads than queries.
  void read(const ConfigReader& config);
  // The mixer, without what a layer has around it.
  Node mixer(const RopeSettings& rope, bool interleaved) const;
  // Its tensors from `from` ("model.layers.3.self_attn."); the output projection is called `output`.
  void take(Blueprint& out, const std::string& mixer, const std::string& from,
            const std::string& output) const;
};

// A model of blocks model.layers.N under model., of width hidden_size, with RMS norms: embedding, final norm and head.
// `embedding` is its name under "model.". May be tied where `may_tie`. Passes over the layers that predict further
// tokens behind the last of `layers`; `extra` is how many there are where the config is silent.
void describe_frame(const ConfigReader& config, const TensorNames& tensors, const std::string& embedding,
                    double eps, bool may_tie, int64_t layers, int64_t extra, Blueprint& out);

}  // namespace weft
