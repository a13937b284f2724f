// Training of a model on a task, and measuring it: what most recipes do.
#pragma once

#include <memory>

#include "io/tasks/task.h"
#include "nn/model.h"
#include "study/experiment.h"

namespace weft {

// How much of a task's test split is measured, and in which form.
struct Measurement {
  int64_t examples = 512, batch = 64;
  int64_t chunk = 0;    // tokens of one call, the state handed on; 0: whole rows
  double prefix = 1.0;  // only this share of each row is shown, for tasks of whole rows
  void fields(Fields& f);
};

// Of a model on a task: "loss" (nats, or the mean squared error) and, by the kind of task, "accuracy" (of what is asked)
// and "exact" (rows without any error), or "mse", "mae" and "relative" (mse over the variance of the targets). Leaves
// the model's training flag as it was. `stop` true ends it with an empty result.
std::map<std::string, double> measure_task(Model& model, const Task& task, const Measurement& measurement,
                                           uint64_t seed, const std::function<bool()>& stop = {});

// The loss to train on, a scalar: mean over all that is asked of cross-entropy in nats, or of squared errors.
at::Tensor task_loss(Model& model, const TaskShape& shape, const Examples& examples);

// `options` with inputs and outputs that the task needs: vocab, features, outputs, pool (mean unless given).
ModelOptions fitted_model(ModelOptions options, const TaskShape& shape);

}  // namespace weft
