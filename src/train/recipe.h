// A recipe: everything that decides how a training run turns out, in one YAML file.
//
//   model:     {width: 192, layers: [...]}                ModelOptions
//   from:      path of a model to go on from, in place of model: its parameters are where training begins
//   tokenizer: bytes                                      or {bpe: {vocab: 2048}}, or the path of a tokenizer;
//                                                         with `from`, that model's own unless given
//   data:      {train: text.txt, valid_fraction: 0.05}    DataOptions
//   optimizer: {muon: {lr: 0.02}}                         one optimizer with its options, see optimizers/optimizer.h
//   schedule:  {kind: wsd, warmup: 100}                   ScheduleOptions
//   run:       {steps: 1000, batch: 16}                   RunOptions
//   claims:    [...]                                      kept as they are
//
// Paths in the file are relative to the folder of the file; paths given with --set, and run.dir, are relative
// to the current folder.
#pragma once

#include <string>
#include <vector>

#include "base/fields.h"
#include "nn/model.h"
#include "train/schedule.h"

namespace weft {

// Files are taken by their ending: .tokens is a token file, .jsonl and .ndjson are JSON lines, anything else
// is text.
struct DataOptions {
  std::vector<std::string> train, valid;
  double valid_fraction = 0;   // of the training text, taken from its end
  std::string separator;       // text: cuts documents; "" makes each file one
  std::string field = "text";  // JSON lines: the member with the text
  int64_t length = 256;        // T, tokens of a row
  std::string hint;            // what to do when a file is absent: "apt-get install ..."
  void fields(Fields& f);
};

// A vocabulary that is learned from the training text.
struct BpeOptions {
  int64_t vocab = 4096;  // of all: bytes, merges, special tokens
  std::string pattern;   // pieces; "" takes GPT-2's
  int64_t min_count = 2;
  void fields(Fields& f);
};

struct RunOptions {
  std::string dir;
  int64_t steps = 1000;
  int64_t batch = 8;       // rows of one forward pass
  int64_t accumulate = 1;  // forward passes of one step
  int64_t seed = 1;
  std::string dtype = "fp32";  // of activations; parameters and optimizer state are fp32 always
  double clip = 1.0;           // bound of the gradient's norm; 0: none
  bool recompute = false;
  int64_t checkpoint_every = 500;  // steps; 0: at the end and on a signal only
  int64_t keep = 2;
  int64_t log_every = 10;
  int64_t eval_every = 0;     // steps; 0: at the end only
  int64_t eval_batches = 32;  // of an evaluation during the run; 0: all
  bool tensorboard = true;
  void fields(Fields& f);
};

struct Recipe {
  std::string path;  // of the file
  std::string from;  // "": parameters begin at random
  ModelOptions model;
  Node tokenizer = Node::scalar("bytes");
  DataOptions data;
  Node optimizer;
  ScheduleOptions schedule;
  RunOptions run;
  Node claims;

  // The whole configuration, every option written out.
  Node resolved() const;
};

// Reads a recipe and puts `sets` ("run.steps=200") on top. InputError names file, line and field.
Recipe load_recipe(const std::string& path, const std::vector<std::string>& sets = {});

// The same from a node that holds a recipe's sections; paths are relative to `folder`, and `path` names the recipe.
Recipe read_recipe(const Node& root, const std::string& folder, const std::string& path);

// Fields in which two resolved recipes differ in a way that a resumed run cannot bridge, as
// "run.batch: 8 in the checkpoint, 16 now". run.dir, run.steps, what is logged, evaluated and saved, paths of
// data and claims are free to change.
std::vector<std::string> recipe_conflicts(const Node& before, const Node& now);

}  // namespace weft
