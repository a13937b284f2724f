#include "program.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <thread>

namespace weft {
namespace {

void redirect(int fd, const std::string& path, int flags) {
  const int file = ::open(path.c_str(), flags, 0600);
  if (file < 0 || ::dup2(file, fd) < 0) _exit(127);
  ::close(file);
}

int64_t peak_of(const rusage& usage) { return int64_t{usage.ru_maxrss} * 1024; }

}  // namespace

int Program::start() {
  spill(folder_.file("in"), input_);
  std::vector<std::string> words = {WEFT_PROGRAM};
  words.insert(words.end(), arguments_.begin(), arguments_.end());
  std::vector<char*> pointers;
  for (auto& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  const std::string output = output_.empty() ? folder_.file("out") : output_;

  const int pid = ::fork();
  require(pid >= 0, "fork failed");
  if (pid > 0) return pid;
  redirect(0, folder_.file("in"), O_RDONLY);
  redirect(1, output, O_WRONLY | O_CREAT);
  redirect(2, folder_.file("err"), O_WRONLY | O_CREAT);
  ::setenv("OMP_NUM_THREADS", "1", 0);  // threads do not help tiny models and hurt on a busy machine
  for (auto& setting : environment_) ::putenv(setting.data());
  if (file_limit_ > 0) {
    const rlimit limit = {static_cast<rlim_t>(file_limit_), static_cast<rlim_t>(file_limit_)};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    ::signal(SIGXFSZ, SIG_IGN);  // writing then fails with EFBIG
  }
  ::execv(WEFT_PROGRAM, pointers.data());
  _exit(127);
}

ProgramResult Program::wait(int pid) {
  int status = 0;
  rusage usage = {};
  while (::wait4(pid, &status, 0, &usage) < 0 && errno == EINTR) {
  }
  return {.code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status),
          .out = slurp(folder_.file("out")),
          .err = slurp(folder_.file("err")),
          .peak_bytes = peak_of(usage)};
}

ProgramResult Program::run() { return wait(start()); }

ProgramResult Program::run_and_signal(const std::string& text, int signal) {
  const int pid = start();
  const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  const auto seen = [&](const char* file) {
    return slurp(folder_.file(file)).find(text) != std::string::npos;
  };
  siginfo_t ended = {};
  while (!seen("out") && !seen("err") && std::chrono::steady_clock::now() < limit) {
    if (::waitid(P_PID, static_cast<id_t>(pid), &ended, WEXITED | WNOHANG | WNOWAIT) == 0 &&
        ended.si_pid == pid)
      break;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  ::kill(pid, signal);
  return wait(pid);
}

ProgramResult weft_program(std::vector<std::string> arguments) { return Program(std::move(arguments)).run(); }

std::string slurp(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void spill(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary);
  file << content;
  file.close();
  require(file.good(), "{}: cannot be written", path);
}

std::vector<std::string> files_below(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code absent;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder, absent))
    names.push_back(entry.path().lexically_relative(folder).string());
  return names;
}

}  // namespace weft
