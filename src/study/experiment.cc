#include "study/experiment.h"

#include "base/error.h"
#include "base/text.h"

namespace weft {
namespace {

std::map<std::string, ExperimentEntry>& registry() {
  static std::map<std::string, ExperimentEntry> entries;
  return entries;
}

}  // namespace

void register_experiment(ExperimentEntry entry) {
  const auto name = entry.name;
  require(registry().emplace(name, std::move(entry)).second,
          "an experiment called '{}' is registered already", name);
}

std::vector<std::string> experiment_names() {
  std::vector<std::string> names;
  for (const auto& [name, entry] : registry()) names.push_back(name);
  return names;
}

const ExperimentEntry& find_experiment(const Node& name) {
  const auto found = registry().find(name.as_string());
  if (found != registry().end()) return found->second;
  const auto guess = nearest_word(name.as_string(), experiment_names());
  throw InputError(fmt::format("{}: '{}' is not an experiment{}; known: {}", name.where(), name.as_string(),
                               guess.empty() ? "" : ", did you mean '" + guess + "'?",
                               join(experiment_names())));
}

}  // namespace weft
