// SIGINT and SIGTERM as a wish to stop that long commands look at between two pieces of work.
#pragma once

#include <exception>

namespace weft::cli {

// Thrown by StopSignals::check(); main turns it into the exit code.
struct Stopped : std::exception {
  explicit Stopped(int code) : exit_code(code) {}
  const char* what() const noexcept override { return "stopped by a signal"; }
  int exit_code;
};

// While one exists, the first of these signals is noted and a second one ends the program at once. One at a
// time.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;
  bool received() const;
  void check() const;  // throws Stopped once a signal was received
  // 130 after SIGINT, 143 after SIGTERM, `otherwise` after neither.
  int exit_code(int otherwise = 0) const;
};

}  // namespace weft::cli
