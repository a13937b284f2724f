// Runs a study: every arm with every seed in a process of its own, several at a time, each able to go on after a stop.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "base/progress.h"
#include "study/experiment.h"
#include "study/study.h"
#include "study/verdict.h"

namespace weft {

struct ReproduceOptions {
  std::string folder;                // of the whole: FOLDER/ARM-SEED for each run
  int64_t jobs = 0;                  // processes at a time; 0: one for each core
  int64_t threads = 0;               // of each process; 0: the cores shared out among them
  std::vector<std::string> command;  // starts one run; "--run", "ARM:SEED" are added
  LineOutput* out = nullptr;
  std::function<bool()> stop = [] { return false; };
};

struct Reproduction {
  bool stopped = false;
  std::vector<RunResult> results;
  std::vector<std::string> failures;  // "ARM seed N: what it said"
};

// Runs what has no result yet in the folder; results of an arm whose configuration has changed since are made again.
Reproduction reproduce(const Study& study, const ReproduceOptions& options);

// One run in this process: what the processes above do. Writes FOLDER/result.json; tells of progress on standard output
// as lines "progress SHARE NOTE".
bool run_arm(const Study& study, const std::string& arm, int64_t seed, const std::string& folder,
             at::Device device, const std::function<bool()>& stop);

}  // namespace weft
