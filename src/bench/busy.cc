#include "bench/busy.h"

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "base/error.h"
#include "bench/ops.h"

namespace weft::bench {
namespace {

std::vector<int> usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  require(sched_getaffinity(0, sizeof set, &set) == 0, "busy: the system does not say which cores there are");
  std::vector<int> cores;
  for (int core = 0; core < CPU_SETSIZE; ++core)
    if (CPU_ISSET(core, &set)) cores.push_back(core);
  return cores;
}

// Becomes a shell that counts for ever on one core; it is killed when its parent ends, in whatever way.
[[noreturn]] void compete(int core, pid_t parent) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  sched_setaffinity(0, sizeof set, &set);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() == parent) execl("/bin/sh", "sh", "-c", "while :; do :; done", nullptr);
  _exit(127);
}

}  // namespace

Competitors::Competitors() {
  const auto parent = getpid();
  const auto cores = usable_cores();
  processes_.reserve(cores.size());
  for (const int core : cores) {
    const auto process = fork();
    if (process == 0) compete(core, parent);
    if (process > 0) processes_.push_back(process);
  }
  hold();
  if (processes_.size() == cores.size()) return;
  send(SIGKILL);
  throw InputError("busy: the system starts no more processes");
}

Competitors::~Competitors() {
  send(SIGKILL);
  for (const auto process : processes_) waitpid(process, nullptr, 0);
}

void Competitors::send(int signal) {
  for (const auto process : processes_) kill(process, signal);
}

void Competitors::run() { send(SIGCONT); }
void Competitors::hold() { send(SIGSTOP); }

std::vector<BusyRow> run_busy(const OpCase& subject, Competitors& competitors, const BusyOptions& options) {
  const auto wrong = difference(subject, subject.weft, subject.bound, subject.gradient_bound);
  std::vector<BusyRow> rows;
  for (const bool gradients : {false, true}) {
    if (gradients && subject.step) break;
    rows.push_back({subject.family, subject.op, subject.shape, pass_of(subject, gradients), wrong, {}, {}});
    if (!wrong.empty()) continue;
    const auto sample = sampler_of(timed_call(subject, subject.weft, gradients));
    const auto settle = [&] { std::this_thread::sleep_for(std::chrono::duration<double>(options.settle_s)); };
    const Sampler free = [&](int64_t calls) { return competitors.hold(), settle(), sample(calls); };
    const Sampler busy = [&](int64_t calls) { return competitors.run(), settle(), sample(calls); };
    const auto timings = time_in_turns({free, busy}, options.timing);
    competitors.hold();
    rows.back().free = timings[0];
    rows.back().busy = timings[1];
  }
  return rows;
}

}  // namespace weft::bench
