// A model on disk: a folder with
//   model.yaml           what the model is (Model::describe()) and which tokenizer it was made for
//   weights.safetensors  every parameter under its dotted name
//   tokenizer.json       as Tokenizer::save() writes it
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/config.h"
#include "base/files.h"
#include "io/tokenizers/tokenizer.h"
#include "nn/model.h"

namespace weft {

struct LoadedModel {
  std::unique_ptr<Model> model;
  std::shared_ptr<const Tokenizer> tokenizer;
  Node config;       // model.yaml
  std::string path;  // of the folder it came from
};

// Writes the three files into `folder`, which exists and is empty: for checkpoints, which hold more.
void write_model_files(const StagedDirectory& folder, const Model& model, const Tokenizer& tokenizer);
// A model folder of its own at `path`. What was there is replaced only when the new one is complete.
void save_model(const std::string& path, const Model& model, const Tokenizer& tokenizer);

// The parameters of `model` from `file`, converted to their types. InputError names a tensor that is missing,
// unexpected or misshapen.
void load_weights(const std::string& file, Model& model);

// `path`: a model folder; the folder of a run, which gives its final model or else its latest checkpoint; or
// RUN/latest and RUN/best for those checkpoints. Parameters have the type in the file and need no gradient.
// InputError when a file is missing, damaged or does not fit the others.
LoadedModel load_model(const std::string& path);

// The model folder that load_model(path) would read.
std::string find_model_folder(const std::string& path);

// Checkpoints of a run by step, oldest first; whole ones only, since they appear under their names when
// complete.
struct CheckpointFolder {
  int64_t step = 0;
  std::string path;
};
std::vector<CheckpointFolder> list_checkpoints(const std::string& run_folder);
// RUN/checkpoints/step-00000200
std::string checkpoint_path(const std::string& run_folder, int64_t step);

}  // namespace weft
