#include "apps/rl/environments/environment.h"

#include <map>

#include "base/text.h"

namespace weft::rl {
namespace {

std::map<std::string, EnvironmentEntry>& environments() {
  static std::map<std::string, EnvironmentEntry> entries;
  return entries;
}

}  // namespace

void register_environment(EnvironmentEntry entry) {
  const auto name = entry.name;
  require(environments().emplace(name, std::move(entry)).second,
          "an environment called '{}' is registered already", name);
}

std::vector<std::string> environment_names() {
  std::vector<std::string> names;
  for (const auto& [name, entry] : environments()) names.push_back(name);
  return names;
}

const EnvironmentEntry& find_environment(const Node& name) {
  const auto found = environments().find(name.as_string());
  if (found != environments().end()) return found->second;
  const auto guess = nearest_word(name.as_string(), environment_names());
  throw InputError(fmt::format("{}: '{}' is not an environment{}; known: {}", name.where(), name.as_string(),
                               guess.empty() ? "" : ", did you mean '" + guess + "'?",
                               join(environment_names())));
}

std::unique_ptr<Environments> make_environments(const Node& node, int64_t count, uint64_t seed,
                                                int64_t first) {
  require(count >= 1, "{}: {} games; at least one is needed", node.where(), count);
  return find_environment(node.at("name")).make(node, count, seed, first);
}

}  // namespace weft::rl
