#include "infer/tasks/run_task.h"

#include <ATen/ops/where.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "base/error.h"
#include "infer/decoder.h"
#include "infer/sampling.h"
#include "io/chat_template/unicode.h"
#include "io/tasks/task.h"

namespace weft {
namespace {

bool advance(const RunTaskOptions& options, size_t done, size_t total) {
  if (options.progress) options.progress(static_cast<int64_t>(done), static_cast<int64_t>(total));
  return !(options.cancelled && options.cancelled());
}

// Gives each item to `score`; false when cancelled.
template <class Score>
bool for_each_item(const TaskFile& task, const RunTaskOptions& options, Score score) {
  for (size_t i = 0; i < task.items.size(); ++i) {
    if (!advance(options, i, task.items.size())) return false;
    score(task.items[i]);
  }
  return advance(options, task.items.size(), task.items.size());
}

size_t argmax(const std::vector<double>& values) {
  return static_cast<size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

std::optional<std::vector<Metric>> score_choices(LikelihoodScorer& scorer, const TaskFile& task,
                                                 const RunTaskOptions& options) {
  std::vector<double> right, right_by_bytes;
  const bool done = for_each_item(task, options, [&](const TaskItem& item) {
    std::vector<double> sums, means;
    const auto scores = scorer.score(item.context, item.continuations);
    for (size_t i = 0; i < scores.size(); ++i) {
      sums.push_back(scores[i].log_probability);
      means.push_back(scores[i].log_probability / std::max(1.0, static_cast<double>(item.choices[i].size())));
    }
    const auto answer = static_cast<size_t>(item.answer);
    right.push_back(argmax(sums) == answer ? 1 : 0);
    right_by_bytes.push_back(argmax(means) == answer ? 1 : 0);
  });
  if (!done) return std::nullopt;
  return std::vector{mean_metric("acc", right), mean_metric("acc_norm", right_by_bytes)};
}

std::optional<std::vector<Metric>> score_likelihoods(LikelihoodScorer& scorer, const TaskFile& task,
                                                     const RunTaskOptions& options) {
  std::vector<double> right, sums;
  const bool done = for_each_item(task, options, [&](const TaskItem& item) {
    const auto score = scorer.score(item.context, item.continuations)[0];
    right.push_back(score.greedy ? 1 : 0);
    sums.push_back(score.log_probability);
  });
  if (!done) return std::nullopt;
  return std::vector{mean_metric("acc", right),
                     Metric{"perplexity", std::exp(-mean_metric("", sums).value), {}}};
}

std::optional<std::vector<Metric>> score_texts(LikelihoodScorer& scorer, const TaskFile& task,
                                               const RunTaskOptions& options) {
  double sum = 0, words = 0, bytes = 0;
  const bool done = for_each_item(task, options, [&](const TaskItem& item) {
    sum += scorer.score_text(item.context);
    bytes += static_cast<double>(item.context.size());
    words += 1;  // runs of blanks part words, at the ends too
    bool inside = false;
    for (size_t at = 0; at < item.context.size();) {
      const bool blank = jinja::is_space(jinja::next_point(item.context, at));
      words += blank && !inside;
      inside = blank;
    }
  });
  if (!done) return std::nullopt;
  return std::vector{Metric{"word_perplexity", std::exp(-sum / words), {}},
                     Metric{"byte_perplexity", std::exp(-sum / bytes), {}},
                     Metric{"bits_per_byte", -sum / bytes / std::numbers::ln2, {}}};
}

std::string greedy_text(Model& model, const Tokenizer& tokenizer, const LikelihoodScorer& scorer,
                        const TaskItem& item, const RunTaskOptions& options) {
  const at::NoGradGuard no_grad;
  auto ids = scorer.encode(item.context);
  if (ids.empty()) ids.push_back(scorer.prefix_id());
  if (const auto most = options.likelihood.max_length; most > 0) {
    require(item.max_tokens < most, "max_tokens {} leaves no room for a context in {} tokens",
            item.max_tokens, most);
    const auto kept = std::min(static_cast<int64_t>(ids.size()), most - item.max_tokens);
    ids.erase(ids.begin(), ids.end() - kept);
  }
  Decoder decoder(model, &tokenizer);
  std::string text;
  const std::function<void(std::string_view)> nobody;
  TextStream stream(tokenizer, item.until, nobody, text);
  std::span<float> logits;
  for (size_t at = 0; at < ids.size(); at += static_cast<size_t>(options.likelihood.chunk))
    logits = decoder.prefill(
        std::span(ids).subspan(at, std::min(ids.size() - at, static_cast<size_t>(options.likelihood.chunk))));
  for (int64_t count = 0; count < item.max_tokens; ++count) {
    const auto id = most_likely(logits);
    const auto& ends = options.end_ids;
    if (tokenizer.end_of_text() == id || std::find(ends.begin(), ends.end(), id) != ends.end()) break;
    if (stream.push(id) || count + 1 == item.max_tokens) break;
    logits = decoder.step(id);
  }
  stream.finish();
  return text;
}

std::optional<std::vector<Metric>> score_generations(Model& model, const Tokenizer& tokenizer,
                                                     const LikelihoodScorer& scorer, const TaskFile& task,
                                                     const RunTaskOptions& options) {
  std::vector<double> right;
  const bool done = for_each_item(task, options, [&](const TaskItem& item) {
    const auto text = greedy_text(model, tokenizer, scorer, item, options);
    right.push_back(std::find(item.targets.begin(), item.targets.end(), text) != item.targets.end() ? 1 : 0);
  });
  if (!done) return std::nullopt;
  return std::vector{mean_metric("exact_match", right)};
}

}  // namespace

Metric mean_metric(const std::string& name, const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  if (values.size() < 2) return {name, mean, std::nullopt};
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return {name, mean, std::sqrt(squares / (count - 1)) / std::sqrt(count)};
}

std::optional<TaskScore> run_task(Model& model, const Tokenizer& tokenizer, const TaskFile& task,
                                  const RunTaskOptions& options) {
  LikelihoodScorer scorer(model, tokenizer, options.likelihood);
  std::optional<std::vector<Metric>> metrics;
  switch (task.kind) {
    case TaskKind::choice:
      metrics = score_choices(scorer, task, options);
      break;
    case TaskKind::likelihood:
      metrics = score_likelihoods(scorer, task, options);
      break;
    case TaskKind::rolling:
      metrics = score_texts(scorer, task, options);
      break;
    case TaskKind::generate:
      metrics = score_generations(model, tokenizer, scorer, task, options);
      break;
  }
  if (!metrics) return std::nullopt;
  return TaskScore{task.name, std::string(task_kind_name(task.kind)), static_cast<int64_t>(task.items.size()),
                   *metrics};
}

std::optional<TaskScore> run_generated_task(Model& model, const Node& node, int64_t rows,
                                            const RunTaskOptions& options) {
  const at::NoGradGuard no_grad;
  const auto task = make_task(node);
  const auto shape = task->shape();
  const auto name = node.at("task").as_string();
  require(shape.kind == TaskShape::Kind::tokens && shape.vocab > 0,
          "task {}: asks for other things than tokens; a language model cannot be scored on it", name);
  const auto most = std::max(shape.vocab, shape.outputs);
  require(most <= model.options().vocab, "task {}: has {} tokens but the model only {}", name, most,
          model.options().vocab);
  if (const auto size = task->size(Split::test); size > 0) rows = std::min(rows, size);
  require(rows >= 1, "task {}: {} rows, expected 1 at least", name, rows);
  std::vector<double> right;
  for (int64_t first = 0; first < rows; first += options.likelihood.batch) {
    if (!advance(options, static_cast<size_t>(first), static_cast<size_t>(rows))) return std::nullopt;
    const auto count = std::min(options.likelihood.batch, rows - first);
    const auto examples = task->examples(Split::test, first, count, 1);
    auto state = model.initial_state(count);
    const auto hidden = model.run(examples.inputs.to(model.device()), state);
    const auto best = model.logits(hidden).slice(-1, 0, shape.outputs).argmax(-1).to(at::kCPU);  // [count, T]
    const auto asked = examples.targets.ne(kNoTarget);
    const auto hits = best.eq(examples.targets).logical_and(asked).sum(1).to(at::kDouble),
               asks = asked.sum(1).to(at::kDouble);
    for (int64_t row = 0; row < count; ++row)
      if (asks[row].item<double>() > 0) right.push_back(hits[row].item<double>() / asks[row].item<double>());
  }
  require(!right.empty(), "task {}: its rows ask nothing", name);
  advance(options, static_cast<size_t>(rows), static_cast<size_t>(rows));
  return TaskScore{name, "generated", static_cast<int64_t>(right.size()), {mean_metric("accuracy", right)}};
}

}  // namespace weft
