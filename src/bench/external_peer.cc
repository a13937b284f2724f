#include "bench/external_peer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "base/error.h"

extern char** environ;

namespace weft::bench {
namespace {

// What follows `word ` in a line; nothing when it starts otherwise.
bool after(const std::string& line, const std::string& word, std::string& rest) {
  if (line.rfind(word + " ", 0) != 0) return false;
  rest = line.substr(word.size() + 1);
  return true;
}

}  // namespace

ExternalPeer::ExternalPeer(const std::string& command, double patience_s)
    : command_(command), patience_s_(patience_s) {
  int to_peer[2], from_peer[2];
  require(pipe2(to_peer, O_CLOEXEC) == 0 && pipe2(from_peer, O_CLOEXEC) == 0, "--peer: no pipes left");
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, to_peer[0], 0);
  posix_spawn_file_actions_adddup2(&actions, from_peer[1], 1);
  const std::string line = "exec " + command;
  char* arguments[] = {const_cast<char*>("sh"), const_cast<char*>("-c"), const_cast<char*>(line.c_str()),
                       nullptr};
  const int failed = posix_spawn(&process_, "/bin/sh", &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  close(to_peer[0]), close(from_peer[1]);
  input_ = to_peer[1], output_ = from_peer[0];
  require(failed == 0, "--peer {}: /bin/sh does not start", command);
  try {
    std::string key;
    for (std::string said = read_line(); said != "ready"; said = read_line()) {
      if (after(said, "case", key))
        cases_.push_back(key);
      else if (!after(said, "peer", name_))
        throw InputError(fmt::format("--peer {}: it says '{}'; expected 'peer NAME', 'case KEY' or 'ready'",
                                     command, said.substr(0, 100)));
    }
    require(!name_.empty(), "--peer {}: it does not say 'peer NAME' before 'ready'", command);
  } catch (...) {
    stop();
    throw;
  }
}

ExternalPeer::~ExternalPeer() { stop(); }

// The end of its input ends a peer; one that hangs is ended.
void ExternalPeer::stop() {
  if (input_ >= 0) close(input_), input_ = -1;
  if (output_ >= 0) close(output_), output_ = -1;
  if (process_ <= 0) return;
  for (int i = 0; i < 100; ++i) {
    if (waitpid(process_, nullptr, WNOHANG) != 0) return void(process_ = -1);
    usleep(10000);
  }
  kill(process_, SIGKILL);
  waitpid(process_, nullptr, 0);
  process_ = -1;
}

bool ExternalPeer::has(const std::string& key) const {
  return broken_.empty() && !key.empty() && std::find(cases_.begin(), cases_.end(), key) != cases_.end();
}

std::string ExternalPeer::read_line() {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(patience_s_);
  for (;;) {
    if (const auto at = buffer_.find('\n'); at != std::string::npos) {
      auto line = buffer_.substr(0, at);
      buffer_.erase(0, at + 1);
      return line;
    }
    const auto left = std::chrono::duration<double>(end - std::chrono::steady_clock::now()).count();
    pollfd waiting{output_, POLLIN, 0};
    const int ready = left > 0 ? poll(&waiting, 1, static_cast<int>(left * 1e3) + 1) : 0;
    if (ready < 0 && errno == EINTR) continue;
    require(ready > 0, "--peer {}: no answer for {:.0f} s", command_, patience_s_);
    char bytes[4096];
    const auto count = read(output_, bytes, sizeof bytes);
    require(count > 0, "--peer {}: it has ended", command_);
    buffer_.append(bytes, static_cast<size_t>(count));
  }
}

double ExternalPeer::run(const std::string& key, int64_t calls, std::string& wrong) {
  try {
    const auto request = fmt::format("run {} {}\n", key, calls);
    struct sigaction ignore {
    }, before{};
    ignore.sa_handler = SIG_IGN;  // a peer that has ended must not end weft
    sigaction(SIGPIPE, &ignore, &before);
    const auto written = write(input_, request.data(), request.size());
    sigaction(SIGPIPE, &before, nullptr);
    require(written == static_cast<ssize_t>(request.size()), "--peer {}: it has ended", command_);
    const auto answer = read_line();
    std::string text;
    char* rest = nullptr;
    if (after(answer, "time", text)) {
      const double seconds = std::strtod(text.c_str(), &rest);
      if (rest != text.c_str() && *rest == 0 && seconds > 0) return seconds;
    }
    if (after(answer, "error", text)) {
      std::erase(cases_, key);
      wrong = fmt::format("--peer {}: {}", command_, text);
      return 0;
    }
    throw InputError(fmt::format("--peer {}: it answers '{}' to 'run {} {}'; expected 'time SECONDS'",
                                 command_, answer.substr(0, 100), key, calls));
  } catch (const InputError& error) {
    broken_ = wrong = error.what();
    return 0;
  }
}

}  // namespace weft::bench
