// A list of layers over a residual stream, itself a sequence mixer: what is true of one mixer is true, and tested, of a
// whole stack.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "nn/layer.h"
#include "nn/mixer.h"

namespace weft {

// Layers begin .. end - 1 run `passes` times, with a state for each pass (universal transformers: Dehghani et al. 2018,
// arXiv:1807.03819).
struct LoopOptions {
  int64_t begin = 0, end = 0, passes = 1;
  void fields(Fields& f);
};

// What a stack has beside its layers.
struct StackOptions {
  Node residual;                        // {KIND: options}; null: the plain stream
  Node loop;                            // LoopOptions; null: every layer runs once
  std::vector<std::string> given = {};  // strands that the caller provides in Context::imports
};

class LayerStack final : public SequenceMixer {
 public:
  // `layers` is a pattern (see pattern.h). Checks that every import has an export above it, or is
  // among options.given.
  LayerStack(const Node& layers, const LayerOptions& defaults, int64_t width,
             const StackOptions& options = {});

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
  bool reads(const std::string& strand) const;  // whether a layer imports a strand of this name
  Node describe() const;                        // the resolved list of layers
  StackOptions options() const;                 // resolved

 private:
  // One run of a layer; a layer of a loop has one for each pass.
  struct Visit {
    size_t layer = 0;
    int64_t pass = 0;
    bool begins_pass = false;  // of a loop
    std::string state_name() const;
  };
  std::vector<Visit> visits() const;
  Stream run_until(size_t visit, const at::Tensor& x, State& state, const Context& context, Strands& strands,
                   Layer::Form form, Draft* draft);
  at::Tensor run_layers(const at::Tensor& x, State& state, const Context& context, Layer::Form form,
                        Draft* draft);
  // Calls f(mixer, times it runs) for every layer that has a mixer.
  void each_mixer(const std::function<void(const SequenceMixer&, int64_t)>& f) const;

  std::vector<std::unique_ptr<Layer>> layers_;
  std::unique_ptr<Residual> residual_;
  Node residual_node_;
  LoopOptions loop_;
  std::vector<Visit> visits_;
  bool recompute_ = false;
};

}  // namespace weft
