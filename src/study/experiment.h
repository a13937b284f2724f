// Experiments: what `weft reproduce` runs for each arm and seed of a recipe. An experiment reads its part of the
// arm's configuration, works, and reports numbers by name, on which the recipe's claims are judged. One file in
// src/study/experiments (or in a layer above) with a class, its Options and one line that registers it.
#pragma once

#include <c10/core/Device.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/fields.h"
#include "base/version.h"

namespace weft {

struct ExperimentContext {
  uint64_t seed = 1;
  std::string folder;  // of this arm and seed; exists. Files for going on after a stop live here
  std::string base;    // folder of the recipe: paths in its data are relative to it
  at::Device device = at::kCPU;
  // Called often: the share of the work that is done, in [0, 1], and a few words ("loss 1.23").
  std::function<void(double share, const std::string& note)> progress = [](double, const std::string&) {};
  // Asked often; true: save what is needed to go on and return with `stopped`.
  std::function<bool()> stop = [] { return false; };
};

struct Outcome {
  bool stopped = false;
  std::map<std::string, double> metrics;  // "accuracy", "long.accuracy", "parameters", "seconds"
};

class Experiment {
 public:
  virtual ~Experiment() = default;
  // InputError when the configuration does not hold. Called again on the same folder after a stop or a crash it goes
  // on where it was, as far as it can.
  virtual Outcome run(const ExperimentContext& context) = 0;
};

struct ExperimentEntry {
  std::string name, summary;
  std::vector<FieldInfo> fields;
  std::function<std::unique_ptr<Experiment>(const Node& arm)> make;
};

void register_experiment(ExperimentEntry entry);
std::vector<std::string> experiment_names();  // sorted
const ExperimentEntry& find_experiment(
    const Node& name);  // InputError at the node, with the nearest known name

// An experiment E has struct E::Options { ...; void fields(Fields&); }, which reads the arm's configuration (the recipe
// without title, arms, seeds, sizes and claims, the arm's changes applied), and E(const E::Options&).
template <class E>
struct RegisterExperiment {
  RegisterExperiment(const char* name, const char* summary) {
    register_experiment({.name = name,
                         .summary = summary,
                         .fields = list_options<typename E::Options>(),
                         .make = [name = std::string(name)](const Node& arm) -> std::unique_ptr<Experiment> {
                           return std::make_unique<E>(
                               read_options<typename E::Options>(arm, name, {"experiment"}));
                         }});
  }
};

}  // namespace weft
