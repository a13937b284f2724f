// What Kimi Linear and Ling share about their layers of Kimi Delta Attention, the mixer kda.
#pragma once

#include "io/pretrained/architectures/mlp.h"

namespace weft {

struct DeltaAttention {
  int64_t heads = 32, head_dim = 128, conv = 4;
  bool low_rank = true;    // decay and output gate are products of two projections of rank head_dim
  double decay_bound = 0;  // as the option of the mixer
  // The mixer, without what a layer has around it. Unsupported for a convolution that weft has no width for.
  Node mixer(const ConfigReader& config, const std::string& activation) const;
  // Its tensors from `from` ("model.layers.3.self_attn."); A_log has the shape `a_log`, the output projection is called
  // `output`.
  void take(Blueprint& out, const TensorNames& tensors, const std::string& mixer, const std::string& from,
            const std::vector<int64_t>& a_log, const std::string& output, int64_t width) const;
};

}  // namespace weft
