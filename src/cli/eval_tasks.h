// What `weft eval --tasks` does.
#pragma once

#include "cli/command.h"
#include "io/model_directory.h"

namespace weft::cli {

struct TaskFlags {
  std::vector<std::string> tasks;
  int64_t shots = -1, limit = 0, max_length = 0, batch = 16;
  bool add_special = false, json = false;

  void flags(Flags& f) {
    f("--tasks", tasks,
      "file of tasks, one JSON object a line, or a generated task as {task: mqar, length: 64}; may be given "
      "several times");
    f("--shots", shots, "tasks: examples before each question; -1: all that the lines have");
    f("--limit", limit, "tasks: questions of each; 0: all (of generated ones 1000)");
    f("--max-length", max_length, "tasks: tokens that the model may see at a time; 0: any number");
    f("--batch", batch, "tasks: continuations in one call");
    f("--add-special", add_special, "tasks: put the tokenizer's special ids around texts");
    f("--json", json, "tasks: print JSON instead of a table");
  }
};

// Prints a table or JSON. Returns the exit code.
int evaluate_tasks(const LoadedModel& loaded, const TaskFlags& flags, int64_t chunk, const Session& session);

}  // namespace weft::cli
