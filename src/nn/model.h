// A model: embedding of tokens or features, a stack of layers, final norm, head over the vocabulary or other outputs.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "nn/stack.h"

namespace weft {

// What the `model:` part of a recipe and the model.yaml of a model directory say.
struct ModelOptions {
  std::string name = "model";
  int64_t vocab = 0;  // 0: as many as the tokenizer has
  int64_t width = 0;
  int64_t features = 0;  // F: the inputs are [B, T, F] numbers instead of tokens
  int64_t outputs = 0;   // O: the head gives O numbers instead of logits of the vocabulary
  std::string pool =
      "none";  // what stands for a row where outputs are of the whole row: none, mean, last, flatten
  int64_t positions = 0;     // learned absolute positions 0 .. positions - 1; 0: none
  bool tie = true;           // the head shares the embedding's weights
  std::string norm = "rms";  // final norm
  double norm_eps = 1e-5;
  double embedding_scale = 1.0;  // multiplies embeddings
  double embedding_std = 0.02;   // of their initialisation
  double logit_scale = 1.0;
  double logit_softcap = 0;             // c > 0: logits become c tanh(logits / c), after the scale
  int64_t logits = 0;                   // how many of the vocabulary's logits there are; 0: all
  bool head_bias = false;               // of a head that is not tied
  std::string embedding_norm = "none";  // norm of embeddings, before the scale
  double embedding_norm_eps = 0;        // 0: norm_eps
  bool fp32_residual = false;           // keep the residual stream in fp32 in bf16 and fp16 runs
  Node residual;                        // kind of residual stream, {scaled: {}}; null: plain
  Node loop;                            // LoopOptions: layers that run several times; null: none
  Node defaults;                        // LayerOptions for all layers
  Node layers;                          // the pattern
  void fields(Fields& f);
};

// One sequence's or batch's past.
struct ModelState {
  State layers;
  at::Tensor position;  // [B] int64, on the CPU: tokens seen of the current document
  ModelState select(const at::Tensor& rows) const;
};

class Model final : public Module {
 public:
  explicit Model(const ModelOptions& options);

  ModelState initial_state(int64_t batch) const;
  // ids [B, T] int64, or features [B, T, F] -> final hidden states [B, T, D], after the final norm. Moves `state`
  // forward. `starts` [B, T] bool marks where packed documents begin; undefined: none begin.
  at::Tensor run(const at::Tensor& ids, ModelState& state, const at::Tensor& starts = {});
  // The same without a state, for training: documents begin where `starts` says and at the first token.
  at::Tensor run(const at::Tensor& ids, const at::Tensor& starts = {});
  // One token for each row, ids [B, 1].
  at::Tensor step(const at::Tensor& ids, ModelState& state);
  // Draft tokens; commit keeps the first n [B] of them.
  at::Tensor tentative(const at::Tensor& ids, ModelState& state, Draft& draft);
  void commit(const at::Tensor& n, ModelState& state, Draft& draft);
  // How many logits there are: options().logits, or the vocabulary's size where that is 0.
  int64_t logit_count() const { return options_.logits > 0 ? options_.logits : options_.vocab; }
  // hidden [..., D] -> logits [..., logit_count()], logit scale and soft cap applied.
  at::Tensor logits(const at::Tensor& hidden) const;
  // Cross-entropy in nats for each token: ids, targets [B, T] int64 (-100: none) -> [B * T] fp32; logits are
  // never materialised whole.
  at::Tensor losses(const at::Tensor& ids, const at::Tensor& targets, const at::Tensor& starts = {});
  // The same, continuing from and moving `state`: for evaluation in constant memory.
  at::Tensor losses(const at::Tensor& ids, const at::Tensor& targets, ModelState& state,
                    const at::Tensor& starts = {});

  // Outputs of a model with options().outputs: inputs as in run -> [B, T, O], or [B, O] where it pools. With a state,
  // continues from and moves it.
  at::Tensor outputs(const at::Tensor& inputs, const at::Tensor& starts = {});
  at::Tensor outputs(const at::Tensor& inputs, ModelState& state, const at::Tensor& starts = {});

  // What the mixer of a layer is given when the model reads `inputs` (as in run).
  MixerInput mixer_input(const at::Tensor& inputs, int64_t layer);

  // Type that activations have: fp32, bf16, fp16 or fp64. Parameters may be fp32 beneath bf16 (master
  // weights).
  void set_compute_dtype(at::ScalarType dtype) { compute_dtype_ = dtype; }
  at::ScalarType compute_dtype() const { return compute_dtype_; }
  void set_training(bool on) { training_ = on; }
  bool training() const { return training_; }
  void set_recompute(bool on) { stack_->set_recompute(on); }

  const ModelOptions& options() const { return options_; }
  LayerStack& stack() { return *stack_; }
  const LayerStack& stack() const { return *stack_; }
  at::Device device() const;
  Node describe() const;  // as YAML that makes the same model, every option written out
  double flops_per_token(int64_t context) const;  // forward

 private:
  // The input of the first layer, [B, T, D]. Puts into context.imports what layers may import of the model: `embedding`,
  // that input, and `tokens`, the ids [B, T] int64.
  at::Tensor embed(const at::Tensor& ids, Context& context) const;
  at::Tensor read_out(const at::Tensor& hidden) const;
  at::Tensor losses_of(const at::Tensor& hidden, const at::Tensor& targets) const;
  Context context_of(const ModelState& state, const at::Tensor& ids, const at::Tensor& starts = {}) const;
  at::Tensor finish(const at::Tensor& x) const;
  const at::Tensor& head_weight() const;

  ModelOptions options_;
  at::ScalarType compute_dtype_ = at::kFloat;
  bool training_ = false;
  std::shared_ptr<Parameter> embedding_, positions_, head_, head_bias_;  // absent where the options have none
  Linear in_, out_;                                                      // of features and of outputs
  std::unique_ptr<LayerStack> stack_;
  Norm norm_, embedding_norm_;
};

}  // namespace weft
