// Tasks as lines of JSON: what a model is asked, in the conventions of the lm-evaluation-harness (docs/evaluating.md).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

enum class TaskKind {
  choice,      // which of several continuations is the likeliest
  likelihood,  // how likely one continuation is, and whether it is what the model itself would write
  generate,    // what the model writes, compared with what it should
  rolling,     // how likely a whole text is
};
std::string_view task_kind_name(TaskKind kind);

// One line. Of choice: context, continuations, answer; likelihood: context, continuations[0]; generate: context, targets,
// until, max_tokens; rolling: context is the text.
struct TaskItem {
  std::string context;
  std::vector<std::string> continuations;  // with the delimiter before them
  std::vector<std::string> choices;        // as written
  int64_t answer = 0;
  std::vector<std::string> targets, until;
  int64_t max_tokens = 256;
};

struct TaskFile {
  std::string name;  // of the file, without folders and ending
  TaskKind kind = TaskKind::choice;
  std::vector<TaskItem> items;
};

// `shots`: how many of a line's "shots" go before its context; -1: all. Reads at most `limit` lines (0: all).
// InputError names file, line and field; all lines of a file are of one kind.
TaskFile read_task_file(const std::string& path, int64_t shots = -1, int64_t limit = 0);

}  // namespace weft
