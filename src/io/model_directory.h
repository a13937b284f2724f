// A model on disk: a folder with
//   model.yaml           what the model is (Model::describe()) and which tokenizer it was made for
//   weights.safetensors  every parameter under its dotted name
//   tokenizer.json       as Tokenizer::save() writes it; absent when the model has no tokenizer
//   pretrained.json      of a model that came from a pretrained checkpoint: its config.json, so that it can become one
//                        again; beside it the files that stood beside its tokenizer
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/config.h"
#include "base/files.h"
#include "io/chat_template/chat_files.h"
#include "io/generation_defaults.h"
#include "io/tokenizers/tokenizer.h"
#include "nn/model.h"

namespace weft {

struct LoadedModel {
  std::unique_ptr<Model> model;
  std::shared_ptr<const Tokenizer> tokenizer;  // null when a pretrained checkpoint comes without one
  Node config;                                 // model.yaml; null for pretrained checkpoints
  std::string path;                            // of the folder or file it came from
  std::string config_text;         // config.json of a pretrained model, also after training; else ""
  std::string tokenizer_folder;    // where tokenizer.json and its companions lie; "" without
  GenerationDefaults generation;   // of generation_config.json
  ChatFiles chat;                  // chat templates and the texts of special tokens
  std::vector<std::string> notes;  // what was passed over while loading, for the user to see
};

// Activations have the type of the matrices.
at::ScalarType compute_type(Model& model);

// Writes the files into `folder`, which exists and is empty: for checkpoints, which hold more. `tokenizer` may be null;
// `config_text` is LoadedModel::config_text.
void write_model_files(const StagedDirectory& folder, const Model& model, const Tokenizer* tokenizer,
                       const std::string& config_text = {});
// A model folder of its own at `path`. What was there is replaced only when the new one is complete.
void save_model(const std::string& path, const Model& model, const Tokenizer* tokenizer,
                const std::string& config_text = {});
inline void save_model(const std::string& path, const Model& model, const Tokenizer& tokenizer) {
  save_model(path, model, &tokenizer);
}
// The same for a model with all that it came with.
void save_model(const std::string& path, const LoadedModel& loaded);

// The files that may stand beside a pretrained model's tokenizer.json: how it is called, templates, defaults.
const std::vector<std::string>& tokenizer_companions();
// Writes them into `to`: copies of those in LoadedModel::tokenizer_folder; of a model without one, what
// LoadedModel::chat has of them.
void write_tokenizer_companions(const LoadedModel& loaded, const StagedDirectory& to);

// The parameters of `model` from `file`, converted to their types. InputError names a tensor that is missing,
// unexpected or misshapen.
void load_weights(const std::string& file, Model& model);

// `path`: a folder of the Hugging Face hub; a GGUF file; a model folder; the folder of a run, which gives its final model
// or else its latest checkpoint; or RUN/latest and RUN/best for those checkpoints. Parameters have the type in the file and need no gradient.
// InputError when a file is missing, damaged or does not fit the others.
LoadedModel load_model(const std::string& path);

// Whether `path` is a pretrained checkpoint, which load_model opens by its own config, and not a folder of weft's.
bool is_pretrained(const std::string& path);

// The model folder of weft's that load_model(path) would read.
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
