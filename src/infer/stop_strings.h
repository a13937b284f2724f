// Stop strings in a stream of text that arrives in pieces: a stop string may span pieces, so text that could
// be the beginning of one is held back until it is known not to be.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace weft {

class StopStrings {
 public:
  // Empty strings are left out.
  explicit StopStrings(std::vector<std::string> strings);
  // The text that is now certain to come before any stop string. After a match it ends right before the stop
  // string that began first, and everything later is dropped.
  std::string push(std::string_view text);
  // The text still held back when the stream ends without a match.
  std::string finish();
  bool matched() const { return !match_.empty(); }
  const std::string& match() const { return match_; }  // the stop string found, or ""

 private:
  size_t held_back() const;
  std::vector<std::string> strings_;
  std::string pending_, match_;
};

}  // namespace weft
