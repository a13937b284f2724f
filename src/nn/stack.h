// A list of layers, itself a sequence mixer: what is true of one mixer is true, and tested, of a whole stack.
#pragma once

#include <memory>
#include <vector>

#include "nn/layer.h"
#include "nn/mixer.h"

namespace weft {

class LayerStack final : public SequenceMixer {
 public:
  // `layers` is a pattern (see pattern.h). Checks that every import has an export above it.
  LayerStack(const Node& layers, const LayerOptions& defaults, int64_t width);

  at::Tensor run(const at::Tensor& x, State& state, const Context& context) override;
  at::Tensor step(const at::Tensor& x, State& state, const Context& context) override;
  at::Tensor tentative(const at::Tensor& x, State& state, const Context& context, Draft& draft) override;
  void commit(const at::Tensor& n, State& state, Draft& draft) override;
  State initial_state(int64_t batch, const at::TensorOptions& options) const override;
  bool causal() const override;
  int64_t state_bytes(int64_t tokens, at::ScalarType dtype) const override;
  double op_flops(int64_t context) const override;
  std::vector<std::string> ops() const override;

  // What the mixer of a layer is given when the stack runs over x [B, T, D] from a fresh state. InputError for a layer that
  // is not there or has no mixer.
  MixerInput mixer_input(const at::Tensor& x, int64_t layer, const Context& context);

  // Activation checkpointing: in training, keep only each layer's input and compute the rest again in the
  // backward pass.
  void set_recompute(bool on) { recompute_ = on; }
  const std::vector<std::unique_ptr<Layer>>& layers() const { return layers_; }
  Node describe() const;  // the resolved list of layers

 private:
  at::Tensor run_layers(const at::Tensor& x, State& state, const Context& context, Layer::Form form,
                        Draft* draft);
  std::vector<std::unique_ptr<Layer>> layers_;
  bool recompute_ = false;
};

}  // namespace weft
