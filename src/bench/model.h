// Speed of a whole model: training steps, prompts, and text token by token. Ids are random: what a token is
// does not change how long it takes.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/machine.h"
#include "bench/timing.h"
#include "nn/model.h"
#include "train/recipe.h"

namespace weft::bench {

// What is timed: a model with its optimizer, at a batch and length.
struct ModelSubject {
  std::string name;
  std::unique_ptr<Model> model;
  Node optimizer;  // null: no training
  double clip = 1;
  int64_t batch = 8, length = 256;
};

// The model of a recipe, with fresh weights; its text is not read. A vocabulary that would be learned counts
// as full.
ModelSubject subject_of_recipe(const Recipe& recipe, at::Device device, at::ScalarType dtype);

struct ModelBench {
  int64_t steps = 5;      // training steps that are timed, after two that are not
  int64_t prompt = 512;   // tokens of the prompt, one row
  int64_t generate = 64;  // tokens in step form, one row, behind the prompt
  std::vector<std::string> parts = {"train", "prefill", "generate"};
};

struct ModelRow {
  std::string part;   // "train", "prefill", "generate"
  std::string shape;  // "16x256"
  Timing timing;      // of one training step, one prompt, one token
  double tokens = 0;  // in what was timed
  Work work;
  double floor_s = 0;
  double tokens_per_second() const { return timing.median_s > 0 ? tokens / timing.median_s : 0; }
  double percent() const { return timing.median_s > 0 ? 100 * floor_s / timing.median_s : 0; }
};

// Floors: training counts three forwards of operations; prefill one; a generated token reads every weight and
// the state once. InputError for an unknown part, and for training without an optimizer.
std::vector<ModelRow> run_model(ModelSubject& subject, const Rates& rates, const ModelBench& options);

}  // namespace weft::bench
