// Decoding on a GPU as one recorded graph a token: launching the hundred kernels and more that a step of a small model has
// takes longer than their work.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "nn/model.h"
#include "ops/cuda_graph.h"

namespace weft {

class StepGraph {
 public:
  // Records one step behind `state`, which is copied, with room for key and value caches of `columns` tokens (more than
  // they hold). Unsupported, with the reason, where a mixer's step cannot be recorded: one whose state changes its shape
  // or that looks at numbers on the device. Call without gradients.
  StepGraph(Model& model, const ModelState& state, int64_t columns);

  // ids [B, 1] -> logits [B, 1, V], valid until the next step. Not when full().
  at::Tensor step(const at::Tensor& ids);
  // Whether the caches have no room for another token; never without caches.
  bool full() const { return used_ >= 0 && used_ >= columns_; }
  // A copy of the state as it stands, which grows again.
  ModelState state() const;

 private:
  void record(Model& model, const std::vector<std::string>& replaced);

  int64_t used_, columns_;
  at::Tensor ids_, cursor_, position_, logits_;  // where the graph reads and writes
  ModelState state_;                             // entries that a step writes in place
  std::map<std::string, at::Tensor> kept_;  // those that it replaces, by path: it copies the new ones here
  std::unique_ptr<CudaGraph> graph_;
};

}  // namespace weft
