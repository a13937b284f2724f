// A peer that runs in a process of its own and takes turns with weft. It writes lines:
//   peer NAME          what it is and its version
//   case KEY           once for each case that it can run
//   ready
// and then answers each line `run KEY CALLS` with `time SECONDS`, of all calls together, or `error TEXT`.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace weft::bench {

class ExternalPeer {
 public:
  // Starts `command` with sh and reads up to `ready`. InputError when it says something else, or nothing for
  // `patience_s` seconds, which bounds every later answer too.
  explicit ExternalPeer(const std::string& command, double patience_s = 120);
  ~ExternalPeer();
  ExternalPeer(const ExternalPeer&) = delete;
  ExternalPeer& operator=(const ExternalPeer&) = delete;

  const std::string& name() const { return name_; }
  bool has(const std::string& key) const;
  // Seconds that `calls` runs of a case took, or 0, and `wrong` says why: the peer answers with an error, and has this case
  // no longer, or it does not answer as it should, and has none any more.
  double run(const std::string& key, int64_t calls, std::string& wrong);

 private:
  std::string read_line();  // InputError at the end of its output, or when none comes
  void stop();

  std::string command_, name_, buffer_, broken_;
  std::vector<std::string> cases_;
  double patience_s_;
  int process_ = -1, input_ = -1, output_ = -1;
};

}  // namespace weft::bench
