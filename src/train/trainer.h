// The training loop. Deterministic: equal recipes give equal losses on the same machine, and whatever
// influences the future is in the checkpoint, so that a run that was killed goes on with the same bits.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/progress.h"
#include "io/datasets/packed_batches.h"
#include "train/checkpoint.h"
#include "train/corpus.h"
#include "train/curve.h"
#include "train/log/json_log.h"
#include "train/log/tensorboard.h"
#include "train/meter.h"
#include "train/recipe.h"
#include "train/run_folder.h"
#include "train/validation.h"

namespace weft {

struct TrainerOptions {
  bool resume = false;  // go on from the latest checkpoint in run.dir, or begin when there is none
  at::Device device = at::kCPU;
  LineOutput* out = nullptr;  // progress; null: silent
  // Asked often: after each step, while data is prepared and while the whole validation text is scored. True:
  // write a checkpoint (when there has been a step) and return.
  std::function<bool()> stop;
};

struct TrainResult {
  bool stopped = false;  // by `stop`, before the last step or its validation was done
  int64_t step = 0;
  double loss = 0;                  // of the last step, nats per token
  std::optional<Validation> valid;  // of the whole validation text, after the last step
  std::string model;                // folder of the final model; "" when stopped
};

class Trainer {
 public:
  // Prepares data, model and folder. InputError when the recipe does not hold, when run.dir holds a run
  // already and `resume` is not set, and when it holds a final model but no checkpoint to resume. An error
  // leaves no folder that was not there before. When `stop` ended the preparation, run() returns at once and
  // model() and corpus() do not exist.
  Trainer(const Recipe& recipe, const TrainerOptions& options);
  ~Trainer();

  // Trains until run.steps or `stop`. InputError when the loss is no longer finite and when the disk is full;
  // the last checkpoint is whole in any case.
  TrainResult run();

  // The resolved configuration, as saved in the run's folder: the recipe with the model's layers one by one.
  const Node& configuration() const { return configuration_; }
  Model& model() { return *model_; }
  const Corpus& corpus() const { return corpus_; }
  const TrainerState& state() const { return state_; }
  const std::string& folder() const { return folder_->path(); }

 private:
  struct Step {
    double loss = 0, gradient_norm = 0, learning_rate = 0;
  };

  void prepare();
  void build_model();
  void restore_or_begin(bool resume);
  Training training() { return {*model_, *optimizer_, *corpus_.tokenizer, configuration_, config_text_}; }
  Step train_step();
  std::optional<Validation> validate_whole();  // nothing when `stop` ended it
  bool validated() const;                      // the log has the whole validation after this step
  bool stop_wanted() const { return options_.stop && options_.stop(); }
  Validation validate_briefly();
  bool due(int64_t every) const { return every > 0 && state_.step % every == 0; }
  bool last() const { return state_.step == recipe_.run.steps; }
  void record(const Step& step, const std::optional<Validation>& brief,
              const std::optional<Validation>& whole);
  void add_validation(LogLine& line, const std::string& name, const char* words,
                      const Validation& validation);
  void append(const LogLine& line);
  void warn_of_warmup();
  void save();
  std::string headline() const;
  TrainResult finish(TrainResult result);

  Recipe recipe_;
  TrainerOptions options_;
  LineOutput silent_;
  LineOutput& out_;
  std::unique_ptr<RunFolder> folder_;
  Corpus corpus_;
  Node configuration_;
  std::unique_ptr<Model> model_;
  std::string config_text_;  // of the pretrained model that training began with
  std::vector<NamedParameter> parameters_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<PackedBatches> batches_;
  std::unique_ptr<JsonLog> log_;
  std::unique_ptr<EventFile> events_;
  std::unique_ptr<Meter> meter_;
  TrainerState state_;
};

// The losses of a log as a curve: "loss" and "valid_loss".
Curve curve_of(const std::vector<LogLine>& log, const std::string& title);

}  // namespace weft
