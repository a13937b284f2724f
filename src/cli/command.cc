#include "cli/command.h"

#include <algorithm>

namespace weft::cli {
namespace {

std::vector<CommandEntry>& registry() {
  static std::vector<CommandEntry> entries;
  return entries;
}

}  // namespace

void register_command(CommandEntry entry) {
  auto& entries = registry();
  const auto place = std::find_if(entries.begin(), entries.end(),
                                  [&](const auto& other) { return other.name > entry.name; });
  entries.insert(place, std::move(entry));
}

const std::vector<CommandEntry>& commands() { return registry(); }

}  // namespace weft::cli
