// How much slower ops get when every core has another process that wants it.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "bench/op_case.h"
#include "bench/timing.h"

namespace weft::bench {

// Processes that never rest, one on each core that this process may use. They end with it.
class Competitors {
 public:
  Competitors();  // they do not run yet; InputError when the system gives no processes
  ~Competitors();
  Competitors(const Competitors&) = delete;
  Competitors& operator=(const Competitors&) = delete;

  void run();
  void hold();
  size_t count() const { return processes_.size(); }

 private:
  void send(int signal);
  std::vector<pid_t> processes_;
};

struct BusyRow {
  std::string family, op, shape, pass;
  std::string wrong;  // what differs from the reference; it is not timed then
  Timing free, busy;
  // Two is a fair share: half of each core.
  double slowdown() const { return free.median_s > 0 ? busy.median_s / free.median_s : 0; }
};

struct BusyOptions {
  // A sample lasts many time slices of the scheduler, or it would say how lucky one slice was.
  TimingOptions timing{.warm_up = 1, .samples = 5, .minimum_s = 0.5, .sample_s = 0.1, .wait = {}};
  double settle_s = 0.01;  // between letting the competitors run, or holding them, and a sample
};

// Checks, then lets samples with and without competitors take turns. On the CPU.
std::vector<BusyRow> run_busy(const OpCase& subject, Competitors& competitors, const BusyOptions& options);

}  // namespace weft::bench
