// What came out of a study: numbers of every arm and seed, and the claims judged on them.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "study/study.h"

namespace weft {

struct RunResult {
  std::string arm;
  int64_t seed = 0;
  std::map<std::string, double> metrics;
};

struct Verdict {
  enum class Kind {
    holds,
    refuted,
    not_judged,  // smoke sizes, or sizes that the claim is not about
    not_run,     // an arm or its metric is missing
  };
  Kind kind = Kind::not_run;
  double mean = 0, low = 0, high = 0;  // over seeds; meaningless when not_run
  int64_t seeds = 0;
};
const char* verdict_text(Verdict::Kind kind);  // "holds", "refuted", "not judged", "not run"

// A claim's number for each seed that has all of its parts, judged by its bound.
Verdict judge(const Claim& claim, const std::vector<RunResult>& results, const std::string& size);

// "at least 0.95", "0.1 to 0.2"
std::string bound_text(const Claim& claim);
// "accuracy of selective minus that of fixed"
std::string quantity_text(const Claim& claim);

// Where results are from: machine, date, commit, command.
struct Provenance {
  std::string machine, date, commit, command, version;
  double seconds = 0;
};
Provenance provenance_now(const std::string& device, const std::string& folder, const std::string& command);

// The whole as JSON, for tools/claims_page.py and others.
std::string results_json(const Study& study, const std::vector<RunResult>& results, const Provenance& from);

// Arms against metrics of the claims: points of all seeds, a line at each bound.
std::string results_svg(const Study& study, const std::vector<RunResult>& results);

// Metrics shown of every arm: the recipe's `report`, else those that claims name.
std::vector<std::string> shown_metrics(const Study& study);

}  // namespace weft
