#include <cmath>

#include <ATen/core/grad_mode.h>

#include "base/error.h"
#include "study/experiments/supervised.h"

namespace weft {
namespace {

using Kind = TaskShape::Kind;

bool over_vocabulary(const TaskShape& shape) {
  return shape.kind == Kind::tokens && shape.outputs == shape.vocab;
}

struct Sums {
  double loss = 0, right = 0, asked = 0, rows = 0, exact = 0;  // tokens, classes
  double square = 0, absolute = 0, target = 0, target_square = 0;
};

// Hidden states or outputs of all positions [B, T, ...], or of the row [B, O].
at::Tensor predict(Model& model, const TaskShape& shape, const at::Tensor& inputs, int64_t chunk) {
  const bool vocabulary = over_vocabulary(shape);
  if (chunk <= 0 || chunk >= inputs.size(1)) return vocabulary ? model.run(inputs) : model.outputs(inputs);
  auto state = model.initial_state(inputs.size(0));
  std::vector<at::Tensor> parts;
  for (int64_t begin = 0; begin < inputs.size(1); begin += chunk) {
    const auto part = inputs.slice(1, begin, std::min(begin + chunk, inputs.size(1)));
    parts.push_back(vocabulary ? model.run(part, state) : model.outputs(part, state));
  }
  return at::cat(parts, 1);
}

// Logits [N, classes] and targets [N] of what is asked, and the row of each.
struct Asked {
  at::Tensor logits, targets, rows;
};

Asked asked(Model& model, const TaskShape& shape, const at::Tensor& predicted, const at::Tensor& targets) {
  if (shape.kind == Kind::classes) return {predicted, targets, at::arange(targets.size(0))};
  const auto places = (targets != kNoTarget).nonzero();  // [N, 2]
  const auto rows = places.select(1, 0), columns = places.select(1, 1);
  auto chosen = predicted.index({rows, columns});
  if (over_vocabulary(shape)) chosen = model.logits(chosen);
  return {chosen, targets.index({rows, columns}), rows};
}

void add_classes(Sums& sums, const Asked& asked, int64_t rows) {
  const auto logits = asked.logits.to(at::kDouble);
  sums.loss += at::cross_entropy_loss(logits, asked.targets, {}, at::Reduction::Sum).item<double>();
  const auto wrong = (logits.argmax(-1) != asked.targets).to(at::kDouble);
  const auto asked_of = at::zeros({rows}, wrong.options()).index_add(0, asked.rows, at::ones_like(wrong));
  const auto wrong_of = at::zeros({rows}, wrong.options()).index_add(0, asked.rows, wrong);
  sums.asked += static_cast<double>(wrong.numel());
  sums.right += static_cast<double>(wrong.numel()) - wrong.sum().item<double>();
  sums.rows += (asked_of > 0).sum().item<double>();
  sums.exact += ((asked_of > 0) & (wrong_of == 0)).sum().item<double>();
}

void add_values(Sums& sums, const at::Tensor& predicted, const at::Tensor& targets) {
  const auto known = targets.isfinite();
  const auto target = targets.masked_select(known).to(at::kDouble);
  const auto error = predicted.masked_select(known).to(at::kDouble) - target;
  sums.asked += static_cast<double>(target.numel());
  sums.square += error.square().sum().item<double>();
  sums.absolute += error.abs().sum().item<double>();
  sums.target += target.sum().item<double>();
  sums.target_square += target.square().sum().item<double>();
}

Examples to_device(const Examples& examples, at::Device device) {
  return {examples.inputs.to(device), examples.targets.to(device)};
}

}  // namespace

void Measurement::fields(Fields& f) {
  f("examples", examples, "test examples", at_least(1));
  f("batch", batch, "examples of one call", at_least(1));
  f("chunk", chunk, "tokens of one call, the state handed on; 0: whole rows, 1: token by token", at_least(0));
  f("prefix", prefix, "share of each row that is shown; for tasks of whole rows", above(0), at_most(1));
}

std::map<std::string, double> measure_task(Model& model, const Task& task, const Measurement& measurement,
                                           uint64_t seed, const std::function<bool()>& stop) {
  at::NoGradGuard no_grad;
  const auto shape = task.shape();
  require(measurement.prefix == 1.0 || shape.kind == Kind::classes || shape.kind == Kind::vector,
          "evaluate: prefix is for tasks of whole rows");
  const int64_t size = task.size(Split::test);
  const int64_t total = size > 0 ? std::min(size, measurement.examples) : measurement.examples;
  const bool training = model.training();
  model.set_training(false);
  Sums sums;
  for (int64_t first = 0; first < total; first += measurement.batch) {
    if (stop && stop()) {
      model.set_training(training);
      return {};
    }
    const int64_t rows = std::min(measurement.batch, total - first);
    auto examples = to_device(task.examples(Split::test, first, rows, seed), model.device());
    if (measurement.prefix < 1) {
      const auto shown =
          static_cast<int64_t>(std::ceil(measurement.prefix * static_cast<double>(examples.inputs.size(1))));
      examples.inputs = examples.inputs.slice(1, 0, shown);
    }
    const auto predicted = predict(model, shape, examples.inputs, measurement.chunk);
    if (shape.kind == Kind::tokens || shape.kind == Kind::classes)
      add_classes(sums, asked(model, shape, predicted, examples.targets), rows);
    else
      add_values(sums, predicted, examples.targets);
  }
  model.set_training(training);
  if (shape.kind == Kind::tokens || shape.kind == Kind::classes)
    return {{"loss", sums.loss / sums.asked},
            {"accuracy", sums.right / sums.asked},
            {"exact", sums.exact / sums.rows}};
  const double mse = sums.square / sums.asked, mean = sums.target / sums.asked;
  return {{"loss", mse},
          {"mse", mse},
          {"mae", sums.absolute / sums.asked},
          {"relative", mse / (sums.target_square / sums.asked - mean * mean)}};
}

at::Tensor task_loss(Model& model, const TaskShape& shape, const Examples& examples) {
  if (over_vocabulary(shape)) {
    const auto count = (examples.targets != kNoTarget).sum().clamp_min(1);
    return model.losses(examples.inputs, examples.targets).sum() / count;
  }
  const auto predicted = model.outputs(examples.inputs);
  if (shape.kind == Kind::classes || shape.kind == Kind::tokens) {
    const auto logits = predicted.reshape({-1, predicted.size(-1)}).to(at::kFloat);
    return at::cross_entropy_loss(logits, examples.targets.flatten(), {}, at::Reduction::Mean, kNoTarget);
  }
  const auto known = examples.targets.isfinite();
  return at::mse_loss(predicted.to(at::kFloat).masked_select(known), examples.targets.masked_select(known));
}

ModelOptions fitted_model(ModelOptions options, const TaskShape& shape) {
  options.vocab = shape.vocab;
  options.features = shape.features;
  const bool rows = shape.kind == Kind::classes || shape.kind == Kind::vector;
  require(rows || options.pool == "none", "model.pool: {}, but the task asks something at every position",
          options.pool);
  if (!over_vocabulary(shape)) {
    options.outputs = shape.outputs;
    if (rows && options.pool == "none") options.pool = "mean";
  }
  return options;
}

}  // namespace weft
