#include "cli/eval_tasks.h"

#include <nlohmann/json.hpp>

#include "base/progress.h"
#include "cli/loading.h"
#include "cli/output.h"
#include "cli/signals.h"
#include "infer/tasks/run_task.h"

namespace weft::cli {
namespace {

constexpr int64_t kGeneratedRows = 1000;

RunTaskOptions task_options(const LoadedModel& loaded, const TaskFlags& flags, int64_t chunk) {
  RunTaskOptions options;
  options.likelihood.max_length = flags.max_length;
  if (const auto positions = loaded.model->options().positions; positions > 0 && flags.max_length == 0)
    options.likelihood.max_length = positions;
  options.likelihood.batch = flags.batch;
  options.likelihood.chunk = chunk;
  options.likelihood.add_special = flags.add_special;
  const auto bos = loaded.chat.special_tokens.find("bos_token");
  if (bos != loaded.chat.special_tokens.end() && loaded.tokenizer)
    options.likelihood.prefix_id = loaded.tokenizer->find(bos->second);
  options.end_ids = loaded.generation.end_ids;
  return options;
}

void print_table(const std::vector<TaskScore>& scores) {
  std::vector<std::vector<std::string>> rows = {{"task", "kind", "items", "metric", "value", "stderr"}};
  for (const auto& score : scores)
    for (const auto& metric : score.metrics)
      rows.push_back({score.name, score.kind, fmt::format("{}", score.items), metric.name,
                      fmt::format("{:.4f}", metric.value),
                      metric.error ? fmt::format("{:.4f}", *metric.error) : ""});
  write_output(table(rows, {2, 4, 5}));
}

void print_json(const std::vector<TaskScore>& scores) {
  auto all = nlohmann::ordered_json::array();
  for (const auto& score : scores) {
    nlohmann::ordered_json one = {{"task", score.name}, {"kind", score.kind}, {"items", score.items}};
    for (const auto& metric : score.metrics) {
      one["metrics"][metric.name]["value"] = metric.value;
      if (metric.error) one["metrics"][metric.name]["stderr"] = *metric.error;
    }
    all.push_back(std::move(one));
  }
  write_output(all.dump(2) + "\n");
}

}  // namespace

int evaluate_tasks(const LoadedModel& loaded, const TaskFlags& flags, int64_t chunk, const Session& session) {
  const StopSignals signals;
  auto lines = LineOutput::to(stderr, session.quiet);
  std::vector<TaskScore> scores;
  // All files are read before the first is scored: a broken line is told at once.
  std::vector<std::optional<TaskFile>> files;
  for (const auto& name : flags.tasks)
    files.push_back(name.starts_with('{') ? std::nullopt
                                          : std::optional(read_task_file(name, flags.shots, flags.limit)));
  for (size_t i = 0; i < files.size(); ++i) {
    const auto& name = flags.tasks[i];
    std::optional<Progress> bar;
    auto options = task_options(loaded, flags, chunk);
    options.cancelled = [&] { return signals.received(); };
    options.progress = [&](int64_t done, int64_t total) {
      if (!bar) bar.emplace(lines, files[i] ? files[i]->name : name, static_cast<double>(total), "questions");
      bar->at(static_cast<double>(done));
    };
    const auto score = files[i] ? run_task(*loaded.model, tokenizer_of(loaded), *files[i], options)
                                : run_generated_task(*loaded.model, Node::parse(name, "--tasks"),
                                                     flags.limit > 0 ? flags.limit : kGeneratedRows, options);
    if (bar) bar->finish();
    if (!score) break;
    scores.push_back(*score);
  }
  if (flags.json)
    print_json(scores);
  else if (!scores.empty())
    print_table(scores);
  return signals.exit_code();
}

}  // namespace weft::cli
