#include "infer/stop_strings.h"

#include <algorithm>
#include <utility>

namespace weft {

StopStrings::StopStrings(std::vector<std::string> strings) : strings_(std::move(strings)) {
  std::erase(strings_, std::string());
}

// Length of the longest end of pending_ that a stop string begins with.
size_t StopStrings::held_back() const {
  size_t longest = 0;
  for (const auto& stop : strings_)
    for (size_t n = std::min(stop.size() - 1, pending_.size()); n > longest; --n)
      if (std::string_view(pending_).ends_with(std::string_view(stop).substr(0, n))) longest = n;
  return longest;
}

std::string StopStrings::push(std::string_view text) {
  if (matched()) return "";
  pending_ += text;
  size_t first = std::string::npos;
  for (const auto& stop : strings_) {
    const size_t at = pending_.find(stop);
    if (at < first) {
      first = at;
      match_ = stop;
    }
  }
  const size_t certain = matched() ? first : pending_.size() - held_back();
  std::string out = pending_.substr(0, certain);
  pending_.erase(0, certain);
  return out;
}

std::string StopStrings::finish() { return matched() ? "" : std::exchange(pending_, ""); }

}  // namespace weft
