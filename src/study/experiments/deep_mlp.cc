// A deep and narrow network of fully connected layers, trained from many random starts: how many of them come to learn.
// Neelakantan et al. 2015, arXiv:1511.06807 (gradient noise): 20 hidden layers of 50 ReLU units, plain SGD, weights from
// N(0, 0.1^2), which halves a signal in each layer, or all zero, where every gradient but that of the last bias is zero.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "base/error.h"
#include "io/tasks/task.h"
#include "nn/module.h"
#include "study/experiment.h"
#include "train/log/json_log.h"
#include "train/optimizers/optimizer.h"

namespace weft {
namespace {

struct MlpOptions {
  int64_t layers = 20, width = 50;
  std::string init = "normal";
  double deviation = 0.1;
  void fields(Fields& f) {
    f("layers", layers, "hidden layers; one more makes the outputs", at_least(1));
    f("width", width, "units of a hidden layer", at_least(1));
    f("init", init, "weights: normal with `deviation`; zero; he: normal with sqrt(2 / inputs). Biases are 0",
      one_of({"normal", "zero", "he"}));
    f("deviation", deviation, "of init normal", above(0));
  }
};

class Mlp final : public Module {
 public:
  Mlp(const MlpOptions& o, int64_t inputs, int64_t outputs) {
    for (int64_t layer = 0; layer <= o.layers; ++layer) {
      const int64_t in = layer == 0 ? inputs : o.width, out = layer == o.layers ? outputs : o.width;
      const double deviation = o.init == "normal" ? o.deviation : std::sqrt(2.0 / static_cast<double>(in));
      const auto name = fmt::format("layers.{}.", layer);
      weights_.push_back(parameter(name + "weight", {out, in},
                                   o.init == "zero" ? init::constant(0) : init::normal(deviation)));
      biases_.push_back(vector_parameter(name + "bias", {out}, init::constant(0)));
    }
  }

  // x [B, inputs] -> [B, outputs]
  at::Tensor operator()(at::Tensor x) const {
    for (size_t layer = 0; layer < weights_.size(); ++layer) {
      if (layer > 0) x = x.relu();
      x = at::linear(x, weights_[layer]->value, biases_[layer]->value);
    }
    return x;
  }

 private:
  std::vector<std::shared_ptr<Parameter>> weights_, biases_;
};

class DeepMlp final : public Experiment {
 public:
  struct Run {
    int64_t steps = 1000, batch = 100, starts = 20;
    double clip = 0, solved_at = 0.8;
    void fields(Fields& f) {
      f("steps", steps, "updates of one start", at_least(1));
      f("batch", batch, "examples of one update", at_least(1));
      f("starts", starts, "random starts, one after another", at_least(1));
      f("clip", clip, "bound of the gradient's norm, before noise; 0: none", at_least(0));
      f("solved_at", solved_at, "test accuracy from which a start counts as solved", at_least(0), at_most(1));
    }
  };
  struct Options {
    Node network, data, optimizer, run;
    void fields(Fields& f) {
      f("network", network, "{layers, width, init: normal, zero or he, deviation}");
      f("data", data, "a task of classes; rows are flattened");
      f("optimizer", optimizer, "one optimizer and its options; gradient noise differs from start to start");
      f("run", run, "{steps, batch, starts, clip, solved_at}");
    }
  };

  explicit DeepMlp(const Options& options)
      : network_(options.network.is_null() ? MlpOptions{}
                                           : read_options<MlpOptions>(options.network, "network")),
        optimizer_(options.optimizer),
        run_(options.run.is_null() ? Run{} : read_options<Run>(options.run, "run")),
        task_(make_task(options.data)),
        shape_(task_->shape()) {
    require(shape_.kind == TaskShape::Kind::classes && shape_.vocab == 0,
            "{}: deep_mlp takes tasks that ask for the class of a row of features, such as digits",
            options.data.where());
  }

  // A stop loses the start that is under way; those before are in the log.
  Outcome run(const ExperimentContext& context) override {
    const auto path = context.folder + "/log.jsonl";
    std::vector<Start> done;
    JsonLog log(path, run_.starts);
    for (const auto& line : read_json_log(path))  // numbers that are not finite are left out of a log
      done.push_back({line.value("accuracy", 0), line.value("loss", NAN), line.value("seconds", 0)});
    while (static_cast<int64_t>(done.size()) < run_.starts) {
      const auto number = static_cast<int64_t>(done.size());
      Start start;
      if (!train(number, context, start)) return {.stopped = true, .metrics = {}};
      done.push_back(start);
      log.append(
          {.step = number + 1,
           .values = {{"accuracy", start.accuracy}, {"loss", start.loss}, {"seconds", start.seconds}}});
      log.sync();
    }
    return summary(done);
  }

 private:
  struct Start {
    double accuracy = 0, loss = 0, seconds = 0;  // loss: of the last batch, NaN after divergence
  };

  // False when it was asked to stop.
  bool train(int64_t number, const ExperimentContext& context, Start& start) const {
    const uint64_t seed = context.seed * 1000 + static_cast<uint64_t>(number);
    const auto first = inputs_of(task_->examples(Split::train, 0, 1, seed));
    Mlp mlp(network_, first.size(1), shape_.outputs);
    mlp.initialize(seed);
    mlp.to(context.device);
    mlp.requires_grad(true);
    const auto parameters = mlp.parameters();
    const auto optimizer = make_optimizer(optimizer_of(seed), parameters);
    const auto begin = std::chrono::steady_clock::now();
    for (int64_t step = 0; step < run_.steps; ++step) {
      if (context.stop()) return false;
      const auto examples = task_->examples(Split::train, step * run_.batch, run_.batch, seed);
      for (const auto& [name, parameter] : parameters) parameter->value.mutable_grad() = at::Tensor();
      const auto loss = at::cross_entropy_loss(mlp(inputs_of(examples).to(context.device)),
                                               examples.targets.to(context.device));
      start.loss = loss.item<double>();
      if (!std::isfinite(start.loss)) break;  // no way back
      loss.backward();
      clip_gradients(parameters, run_.clip);
      optimizer->step(1);
      const double share = static_cast<double>(step + 1) / static_cast<double>(run_.steps);
      context.progress((static_cast<double>(number) + share) / static_cast<double>(run_.starts),
                       fmt::format("start {}, loss {:.4f}", number + 1, start.loss));
    }
    start.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    start.accuracy = accuracy(mlp, context);
    return true;
  }

  // With a seed of the start for its noise.
  Node optimizer_of(uint64_t seed) const {
    Node node = optimizer_;
    if (!node.is_map() || node.entries().size() != 1) return node;
    const auto& [name, options] = node.entries().front();
    const auto* noise = options.is_map() ? options.find("gradient_noise") : nullptr;
    if (!noise || !noise->is_map()) return node;
    const auto field = name + ".gradient_noise.seed";
    node.set(field, std::to_string(seed));
    return node;
  }

  static at::Tensor inputs_of(const Examples& examples) { return examples.inputs.flatten(1); }

  double accuracy(const Mlp& mlp, const ExperimentContext& context) const {
    const at::NoGradGuard no_grad;
    const int64_t size = task_->size(Split::test), total = size > 0 ? size : 2000;
    const auto examples = task_->examples(Split::test, 0, total, context.seed);
    const auto logits = mlp(inputs_of(examples).to(context.device)).cpu();
    return (logits.argmax(1) == examples.targets).to(at::kDouble).mean().item<double>();
  }

  // Means over starts; the spread is the standard deviation of a start.
  Outcome summary(const std::vector<Start>& starts) const {
    const auto count = static_cast<double>(starts.size());
    double mean = 0, best = 0, solved = 0, diverged = 0, seconds = 0, squares = 0;
    for (const auto& start : starts) {
      mean += start.accuracy / count;
      best = std::max(best, start.accuracy);
      solved += start.accuracy >= run_.solved_at ? 1 / count : 0;
      diverged += std::isfinite(start.loss) ? 0 : 1 / count;
      seconds += start.seconds;
    }
    for (const auto& start : starts) squares += (start.accuracy - mean) * (start.accuracy - mean);
    const double spread = starts.size() > 1 ? std::sqrt(squares / (count - 1)) : 0;
    Outcome outcome;
    outcome.metrics = {{"accuracy", mean},          {"best_accuracy", best},
                       {"accuracy_spread", spread}, {"standard_error", spread / std::sqrt(count)},
                       {"solved", solved},          {"diverged", diverged},
                       {"seconds", seconds}};
    return outcome;
  }

  MlpOptions network_;
  Node optimizer_;
  Run run_;
  std::unique_ptr<Task> task_;
  TaskShape shape_;
};
const RegisterExperiment<DeepMlp> register_deep_mlp{
    "deep_mlp", "train a deep ReLU network from many random starts (gradient noise)"};

}  // namespace
}  // namespace weft
