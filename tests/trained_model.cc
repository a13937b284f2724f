#include "trained_model.h"

namespace weft {
namespace {

std::string training_text() {
  std::string text;
  for (int i = 0; i < 600; ++i)
    text += "The shuttle carries thread number " + std::to_string(i * 37 % 1000) + " through the warp.\n";
  return text;
}

}  // namespace

std::string tiny_recipe(int64_t steps) {
  return "model:\n"
         "  name: tiny\n"
         "  width: 32\n"
         "  layers:\n"
         "    - {mixer: gated_delta_net, heads: 2, head_dim: 16, ffn: {swiglu: 64}}\n"
         "    - {mixer: attention, heads: 2, head_dim: 16, ffn: {swiglu: 64}}\n"
         "tokenizer: bytes\n"
         "data: {train: text.txt, valid_fraction: 0.1, length: 64}\n"
         "optimizer: {adamw: {lr: 0.01}}\n"
         "run: {steps: " +
         std::to_string(steps) +
         ", batch: 4, seed: 1, log_every: 1, checkpoint_every: 10, eval_batches: 2}\n";
}

TrainedModel::TrainedModel()
    : recipe(folder.file("tiny.yaml")), text(folder.file("text.txt")), run(folder.file("run")) {
  spill(text, training_text());
  spill(recipe, tiny_recipe(30));
  result = weft_program({"train", recipe, "--set", "run.dir=" + run});
}

const TrainedModel& trained_model() {
  static const TrainedModel trained;
  return trained;
}

}  // namespace weft
