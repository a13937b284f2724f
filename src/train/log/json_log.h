// The log of a run: one JSON object a line, each with the step. Numbers are written so that they read back to
// the same bits.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace weft {

// One line: "step" and named numbers, in the order given. Numbers that are not finite are left out.
struct LogLine {
  int64_t step = 0;
  std::vector<std::pair<std::string, double>> values;
  // The value of that name, or `otherwise`.
  double value(const std::string& name, double otherwise) const;
};

// Appends lines to a file. Every line is written at once, so that a killed run leaves whole lines.
class JsonLog {
 public:
  // Opens or creates the file and drops all lines beyond `last_step`, among them those that a run wrote after
  // its last checkpoint, and an unfinished last line.
  JsonLog(const std::string& path, int64_t last_step);
  ~JsonLog();
  JsonLog(const JsonLog&) = delete;
  JsonLog& operator=(const JsonLog&) = delete;

  // InputError when the disk is full; the file then ends with the line before.
  void append(const LogLine& line);
  // Waits until all lines are on the disk.
  void sync();

 private:
  std::string path_;
  int fd_ = -1;
};

// All lines; an unfinished last one is left out. InputError "file:line: reason" for any other line that is
// not one.
std::vector<LogLine> read_json_log(const std::string& path);

}  // namespace weft
