#include "study/experiments/supervised.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>

#include "base/error.h"
#include "base/files.h"
#include "io/safetensors.h"
#include "train/log/json_log.h"
#include "train/optimizers/optimizer.h"
#include "train/schedule.h"

namespace weft {
namespace {

// `node` with the fields of a map {dotted: value} put on top.
Node with_changes(Node node, const Node& changes, const std::vector<std::string>& leave_out = {}) {
  for (const auto& [key, value] : changes.entries()) {
    if (std::find(leave_out.begin(), leave_out.end(), key) != leave_out.end()) continue;
    node.set(key, value.dump());
  }
  return node;
}

class Supervised final : public Experiment {
 public:
  struct Run {
    int64_t steps = 1000, batch = 64, eval_every = 200, checkpoint_every = 200;
    double clip = 1.0, stop_at = 0, stop_below = 0;
    void fields(Fields& f) {
      f("steps", steps, "updates of the parameters", at_least(1));
      f("batch", batch, "examples of one update", at_least(1));
      f("clip", clip, "bound of the gradient's norm; 0: none", at_least(0));
      f("eval_every", eval_every, "steps between measurements on test examples", at_least(1));
      f("checkpoint_every", checkpoint_every, "steps", at_least(1));
      f("stop_at", stop_at, "training ends once a measurement's accuracy reaches this; 0: never", at_least(0),
        at_most(1));
      f("stop_below", stop_below, "training ends once a measurement's loss is below this; 0: never",
        at_least(0));
    }
  };
  struct Options {
    Node model, data, mix, optimizer, schedule, run, measure, evaluate;
    void fields(Fields& f) {
      f("model", model, "the network; vocabulary, features and outputs come from the task");
      f("data", data, "the task and its options: {task: mqar, length: 64}");
      f("mix", mix, "list of changes to data: training batches take one after another");
      f("optimizer", optimizer, "one optimizer and its options");
      f("schedule", schedule, "learning rate over the run");
      f("run", run, "length, batch, measurements");
      f("measure", measure, "how test examples are measured");
      f("evaluate", evaluate,
        "further measurements after training: {name: {changes to data, examples, batch, chunk, prefix}}");
    }
  };

  explicit Supervised(const Options& options)
      : o_(options),
        run_(read_options<Run>(options.run, "run")),
        schedule_(read_options<ScheduleOptions>(options.schedule, "schedule")),
        measure_(read_options<Measurement>(options.measure, "measure")),
        task_(make_task(options.data)),
        shape_(task_->shape()) {
    if (o_.mix.is_null()) {
      training_.push_back(make_task(o_.data));
    } else {
      for (const auto& changes : o_.mix.items())
        training_.push_back(make_task(with_changes(o_.data, changes)));
    }
    for (const auto& task : training_) check_shape(*task, "mix");
    if (o_.evaluate.is_map())
      for (const auto& [name, changes] : o_.evaluate.entries()) {
        static const std::vector<std::string> own = {"examples", "batch", "chunk", "prefix"};
        auto how = measure_;
        Node node = write_options(how);
        for (const auto& key : own)
          if (const auto* value = changes.find(key)) node.set_child(key, *value);
        evaluations_.push_back({name, make_task(with_changes(o_.data, changes, own)),
                                read_options<Measurement>(node, "evaluate." + name)});
        check_shape(*evaluations_.back().task, "evaluate." + name);
      }
  }

  Outcome run(const ExperimentContext& context) override {
    Model model(fitted_model(read_options<ModelOptions>(o_.model, "model"), shape_));
    model.initialize(context.seed);
    model.to(context.device);
    model.requires_grad(true);
    model.set_training(true);
    auto parameters = model.parameters();
    auto optimizer = make_optimizer(o_.optimizer, parameters);
    Progress progress;
    const auto checkpoint = context.folder + "/checkpoint.safetensors";
    if (std::filesystem::exists(checkpoint)) restore(checkpoint, parameters, *optimizer, progress);
    JsonLog log(context.folder + "/log.jsonl", progress.step);
    Outcome outcome;
    while (progress.step < run_.steps && !progress.done) {
      if (context.stop()) {
        log.sync();
        save(checkpoint, parameters, *optimizer, progress);
        return {.stopped = true, .metrics = {}};
      }
      const auto begin = std::chrono::steady_clock::now();
      train_step(model, parameters, *optimizer, context, progress);
      progress.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      context.progress(static_cast<double>(progress.step) / static_cast<double>(run_.steps),
                       fmt::format("loss {:.4f}", progress.loss));
      if (progress.step % run_.eval_every == 0 && progress.step < run_.steps)
        measure_briefly(model, context, progress, log);
      if (progress.step % run_.checkpoint_every == 0) {
        log.sync();
        save(checkpoint, parameters, *optimizer, progress);
      }
    }
    save(checkpoint, parameters, *optimizer, progress);
    outcome.metrics = measure_task(model, *task_, measure_, context.seed, context.stop);
    for (const auto& evaluation : evaluations_)
      for (const auto& [name, value] :
           measure_task(model, *evaluation.task, evaluation.how, context.seed, context.stop))
        outcome.metrics[evaluation.name + "." + name] = value;
    if (context.stop()) return {.stopped = true, .metrics = {}};
    LogLine last{.step = progress.step, .values = {{"loss", progress.loss}}};
    for (const auto& [name, value] : outcome.metrics) last.values.emplace_back("test_" + name, value);
    log.append(last);
    log.sync();
    outcome.metrics["train_loss"] = progress.loss;
    outcome.metrics["first_loss"] = progress.first_loss;
    outcome.metrics["steps"] = static_cast<double>(progress.step);
    outcome.metrics["seconds"] = progress.seconds;
    outcome.metrics["tokens_per_second"] =
        static_cast<double>(progress.tokens) / std::max(progress.seconds, 1e-9);
    outcome.metrics["parameters"] = static_cast<double>(model.parameter_count());
    if (shape_.kind == TaskShape::Kind::tokens) outcome.metrics["chance"] = shape_.chance;
    const auto length = task_->examples(Split::test, 0, 1, context.seed).inputs.size(1);
    outcome.metrics["state_bytes"] = static_cast<double>(model.stack().state_bytes(length, at::kFloat));
    return outcome;
  }

 private:
  struct Evaluation {
    std::string name;
    std::unique_ptr<Task> task;
    Measurement how;
  };
  struct Progress {
    int64_t step = 0, tokens = 0;
    double loss = 0, first_loss = 0, seconds = 0;  // loss: an average over the last steps

    bool done = false;
  };

  void check_shape(const Task& task, const std::string& where) const {
    const auto shape = task.shape();
    require(shape.kind == shape_.kind && shape.vocab == shape_.vocab && shape.features == shape_.features &&
                shape.outputs == shape_.outputs,
            "{}: inputs or outputs differ from those of data: vocabulary {} and {}, features {} and {}, "
            "outputs {} and {}",
            where, shape.vocab, shape_.vocab, shape.features, shape_.features, shape.outputs, shape_.outputs);
  }

  void train_step(Model& model, const std::vector<NamedParameter>& parameters, Optimizer& optimizer,
                  const ExperimentContext& context, Progress& progress) const {
    const auto& task = *training_[static_cast<size_t>(progress.step) % training_.size()];
    auto examples = task.examples(Split::train, progress.step * run_.batch, run_.batch, context.seed);
    examples = {examples.inputs.to(context.device), examples.targets.to(context.device)};
    for (const auto& [name, parameter] : parameters) parameter->value.mutable_grad() = at::Tensor();
    const auto loss = task_loss(model, shape_, examples);
    loss.backward();
    const double value = loss.item<double>();
    // Each step counts a tenth, the first ones equally.
    progress.loss += (value - progress.loss) / static_cast<double>(std::min<int64_t>(progress.step + 1, 10));
    if (progress.step < 5) progress.first_loss = progress.loss;
    const double norm = clip_gradients(parameters, run_.clip);
    require(std::isfinite(value) && std::isfinite(norm),
            "step {}: the loss is {} and the gradient's norm {}; training has diverged", progress.step + 1,
            progress.loss, norm);
    optimizer.step(schedule_factor(schedule_, progress.step, run_.steps));
    ++progress.step;
    progress.tokens += examples.inputs.size(0) * examples.inputs.size(1);
  }

  void measure_briefly(Model& model, const ExperimentContext& context, Progress& progress,
                       JsonLog& log) const {
    auto how = measure_;
    how.examples = std::min<int64_t>(how.examples, 256);
    const auto metrics = measure_task(model, *task_, how, context.seed, context.stop);
    if (metrics.empty()) return;
    LogLine line{.step = progress.step, .values = {{"loss", progress.loss}}};
    for (const auto& [name, value] : metrics) line.values.emplace_back("test_" + name, value);
    log.append(line);
    const auto accuracy = metrics.find("accuracy");
    progress.done = (run_.stop_at > 0 && accuracy != metrics.end() && accuracy->second >= run_.stop_at) ||
                    (run_.stop_below > 0 && metrics.at("loss") < run_.stop_below);
  }

  static NamedTensors tensors(const std::vector<NamedParameter>& parameters, const Optimizer& optimizer) {
    NamedTensors all;
    for (const auto& [name, parameter] : parameters)
      all.emplace_back("model." + name, parameter->value.detach());
    for (const auto& [name, tensor] : optimizer.state()) all.emplace_back(name, tensor);
    return all;
  }

  static void save(const std::string& path, const std::vector<NamedParameter>& parameters,
                   const Optimizer& optimizer, const Progress& progress) {
    write_safetensors(path, tensors(parameters, optimizer),
                      {{"step", std::to_string(progress.step)},
                       {"tokens", std::to_string(progress.tokens)},
                       {"loss", fmt::format("{:.17g}", progress.loss)},
                       {"first_loss", fmt::format("{:.17g}", progress.first_loss)},
                       {"seconds", fmt::format("{:.17g}", progress.seconds)},
                       {"done", progress.done ? "1" : "0"}});
  }

  static void restore(const std::string& path, const std::vector<NamedParameter>& parameters,
                      Optimizer& optimizer, Progress& progress) {
    at::NoGradGuard no_grad;
    const SafeTensors file(path);
    for (const auto& [name, parameter] : parameters) parameter->value.copy_(file.view("model." + name));
    optimizer.load(file);
    const auto& metadata = file.metadata();
    progress.step = std::stoll(metadata.at("step"));
    progress.tokens = std::stoll(metadata.at("tokens"));
    progress.loss = std::stod(metadata.at("loss"));
    progress.first_loss = std::stod(metadata.at("first_loss"));
    progress.seconds = std::stod(metadata.at("seconds"));
    progress.done = metadata.at("done") == "1";
  }

  Options o_;
  Run run_;
  ScheduleOptions schedule_;
  Measurement measure_;
  std::unique_ptr<Task> task_;
  TaskShape shape_;
  std::vector<std::unique_ptr<Task>> training_;
  std::vector<Evaluation> evaluations_;
};
const RegisterExperiment<Supervised> register_supervised{"supervised",
                                                         "train a model on a task and measure it"};

}  // namespace
}  // namespace weft
