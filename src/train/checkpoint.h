// Checkpoints: everything that decides how a run goes on, in a folder that appears complete or not at all.
//   model.yaml weights.safetensors tokenizer.json   a model folder (io/model_directory.h)
//   optimizer.safetensors                           moments, and the state of the random-number generators
//   recipe.yaml                                     the resolved configuration
//   trainer.yaml                                    TrainerState, CRC-32C of the other files; written last
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "base/config.h"
#include "io/datasets/packed_batches.h"
#include "io/tokenizers/tokenizer.h"
#include "nn/model.h"
#include "train/optimizers/optimizer.h"

namespace weft {

struct TrainerState {
  int64_t step = 0;                 // updates done
  int64_t tokens = 0;               // target tokens seen
  double seconds = 0;               // of training, over all resumes
  BatchPosition data;               // of the next batch
  std::string corpus;               // Corpus::fingerprint()
  std::optional<double> best_loss;  // of validations during the run
  int64_t best_step = 0;
};

// What is being trained; all of it lives elsewhere.
struct Training {
  Model& model;
  Optimizer& optimizer;
  const Tokenizer& tokenizer;
  const Node& recipe;              // resolved
  const std::string& config_text;  // LoadedModel::config_text of the model that training began with
};

// Writes RUN/checkpoints/step-N; does nothing when it exists. InputError when the disk is full: earlier
// checkpoints stay.
void save_checkpoint(const std::string& run_folder, const Training& training, const TrainerState& state);

// Restores model, optimizer and random-number generators from the checkpoint folder. InputError names a file
// that is damaged or missing and what to do, every field in which the recipe differs (see recipe_conflicts), and another tokenizer or
// training text.
TrainerState load_checkpoint(const std::string& path, const Training& training,
                             const std::string& corpus_fingerprint);

// Removes all checkpoints but the latest `keep` and the one of `best_step`.
void prune_checkpoints(const std::string& run_folder, int64_t keep, int64_t best_step);

}  // namespace weft
