#include "io/tasks/task.h"

#include <cmath>
#include <map>
#include <numbers>
#include <numeric>

#include "base/error.h"
#include "base/text.h"
#include "io/datasets/permutation.h"

namespace weft {
namespace {

std::map<std::string, TaskEntry>& registry() {
  static std::map<std::string, TaskEntry> entries;
  return entries;
}

}  // namespace

ExampleRandom::ExampleRandom(uint64_t seed, Split split, int64_t number)
    : state_(mix_bits(mix_bits(seed * 2 + (split == Split::test ? 1 : 0)) ^
                      mix_bits(~static_cast<uint64_t>(number)))) {}

// SplitMix64: a counter whose bits are mixed.
uint64_t ExampleRandom::bits() { return mix_bits(state_ += 0x9E3779B97F4A7C15u); }

int64_t ExampleRandom::below(int64_t n) {
  invariant(n >= 1, "a random number below {}", n);
  return static_cast<int64_t>((static_cast<unsigned __int128>(bits()) * static_cast<uint64_t>(n)) >> 64);
}

double ExampleRandom::uniform() { return static_cast<double>(bits() >> 11) * 0x1p-53; }

double ExampleRandom::normal() {
  const double radius = std::sqrt(-2 * std::log(1 - uniform()));
  return radius * std::cos(2 * std::numbers::pi * uniform());
}

std::vector<int64_t> ExampleRandom::permutation(int64_t n) { return choose(n, n); }

std::vector<int64_t> ExampleRandom::choose(int64_t n, int64_t count) {
  invariant(count <= n, "{} different ones of {}", count, n);
  std::vector<int64_t> all(static_cast<size_t>(n));
  std::iota(all.begin(), all.end(), 0);
  for (int64_t i = 0; i < count; ++i)
    std::swap(all[static_cast<size_t>(i)], all[static_cast<size_t>(i + below(n - i))]);
  all.resize(static_cast<size_t>(count));
  return all;
}

void register_task(TaskEntry entry) {
  const auto name = entry.name;
  require(registry().emplace(name, std::move(entry)).second, "a task called '{}' is registered already",
          name);
}

std::vector<std::string> task_names() {
  std::vector<std::string> names;
  for (const auto& [name, entry] : registry()) names.push_back(name);
  return names;
}

const TaskEntry& find_task(const Node& name) {
  const auto found = registry().find(name.as_string());
  if (found != registry().end()) return found->second;
  const auto guess = nearest_word(name.as_string(), task_names());
  throw InputError(fmt::format("{}: '{}' is not a task{}; known: {}", name.where(), name.as_string(),
                               guess.empty() ? "" : ", did you mean '" + guess + "'?", join(task_names())));
}

std::unique_ptr<Task> make_task(const Node& node) { return find_task(node.at("task")).make(node); }

Node resolve_task(const Node& node) { return find_task(node.at("task")).resolve(node); }

}  // namespace weft
