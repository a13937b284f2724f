// Scores of tasks: files of lines, and the generated ones that recipes train on.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "base/config.h"
#include "infer/tasks/likelihood.h"
#include "infer/tasks/task_file.h"

namespace weft {

struct Metric {
  std::string name;
  double value = 0;
  std::optional<double> error;  // standard error of a mean, from the sample's variance
};

struct TaskScore {
  std::string name;
  std::string kind;
  int64_t items = 0;
  std::vector<Metric> metrics;
};

struct RunTaskOptions {
  LikelihoodOptions likelihood;
  std::vector<int64_t> end_ids;                    // end a generated text, beside the end-of-text token
  std::function<void(int64_t, int64_t)> progress;  // told items done and in all
  std::function<bool()> cancelled;                 // asked before each item; true gives no score
};

// choice: acc, acc_norm (log-likelihoods divided by the bytes of the choices); likelihood: acc (greedy), perplexity;
// generate: exact_match; rolling: word_perplexity, byte_perplexity, bits_per_byte. Empty when cancelled.
std::optional<TaskScore> run_task(Model& model, const Tokenizer& tokenizer, const TaskFile& task,
                                  const RunTaskOptions& options);

// accuracy of the model on `rows` test examples of a generated task {task: NAME, ...} that asks for tokens: the share of
// asked positions of a row whose most likely token is right, averaged over rows. InputError for tasks of other kinds and
// for more tokens than the model has.
std::optional<TaskScore> run_generated_task(Model& model, const Node& task, int64_t rows,
                                            const RunTaskOptions& options);

// The mean of values and its standard error (none for fewer than two).
Metric mean_metric(const std::string& name, const std::vector<double>& values);

}  // namespace weft
