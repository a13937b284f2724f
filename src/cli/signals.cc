#include "cli/signals.h"

#include <csignal>

#include <atomic>

namespace weft::cli {
namespace {

std::atomic<int> received_signal{0};
static_assert(std::atomic<int>::is_always_lock_free, "a signal handler may write lock-free atomics only");

void on_signal(int signal) { received_signal.store(signal); }

}  // namespace

StopSignals::StopSignals() {
  received_signal = 0;
  struct sigaction action = {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_RESTART | static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGXFSZ, SIG_IGN);  // a file that grows too large is a failed write, with a message
}

StopSignals::~StopSignals() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

bool StopSignals::received() const { return received_signal != 0; }

void StopSignals::check() const {
  if (received()) throw Stopped(exit_code());
}

int StopSignals::exit_code(int otherwise) const { return received() ? 128 + received_signal : otherwise; }

}  // namespace weft::cli
