// Runs the built `weft` program as a user would.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/scratch_folder.h"

namespace weft {

struct ProgramResult {
  int code = -1;  // exit code, or 128 + the signal that ended it
  std::string out, err;
  int64_t peak_bytes = 0;  // of memory in RAM
};

class Program {
 public:
  explicit Program(std::vector<std::string> arguments) : arguments_(std::move(arguments)) {}
  Program& input(std::string text) { return input_ = std::move(text), *this; }
  Program& output_to(std::string path) {
    return output_ = std::move(path), *this;
  }  // ProgramResult::out is empty then
  // Writing beyond so many bytes of a file fails, as on a full disk.
  Program& file_limit(int64_t bytes) { return file_limit_ = bytes, *this; }
  Program& environment(const std::string& setting) { return environment_.push_back(setting), *this; }

  ProgramResult run();

  // For signals: starts it, waits until `text` stands in its standard output or error (or it has ended, or a
  // minute has passed), and sends.
  ProgramResult run_and_signal(const std::string& text, int signal);

 private:
  int start();
  ProgramResult wait(int pid);
  std::vector<std::string> arguments_, environment_;
  std::string input_, output_;
  int64_t file_limit_ = 0;
  ScratchFolder folder_;
};

// Program(arguments).run()
ProgramResult weft_program(std::vector<std::string> arguments);

// The whole content; "" for a file that is not there.
std::string slurp(const std::string& path);
void spill(const std::string& path, const std::string& content);
// Names of everything below a folder, for looking for what should not be left.
std::vector<std::string> files_below(const std::string& folder);

}  // namespace weft
