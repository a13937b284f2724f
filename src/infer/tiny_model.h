// A random model that runs in milliseconds: what the tests of this layer share.
#pragma once

#include <memory>

#include "nn/model.h"

namespace weft {

// Byte vocabulary, a delta-rule layer and a windowless attention layer, fp64 unless said otherwise.
inline std::unique_ptr<Model> tiny_model(at::ScalarType dtype = at::kDouble, int64_t vocab = 257) {
  const auto node = Node::parse(
      "name: tiny\n"
      "width: 16\n"
      "embedding_std: 1.0\n"
      "tie: false\n"
      "layers:\n"
      "  - {mixer: gated_delta_net, heads: 2, head_dim: 8, ffn: {swiglu: 32}}\n"
      "  - {mixer: attention, heads: 2, head_dim: 8, ffn: {swiglu: 32}}\n",
      "tiny.yaml");
  auto options = read_options<ModelOptions>(node, "model");
  options.vocab = vocab;
  auto model = std::make_unique<Model>(options);
  model->initialize(7);
  model->to(dtype);
  model->set_compute_dtype(dtype);
  return model;
}

}  // namespace weft
