// Times ops against the machine's floor and a peer, after proving that both compute the right thing.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/external_peer.h"
#include "bench/machine.h"
#include "bench/op_case.h"
#include "bench/timing.h"

namespace weft::bench {

// What a peer took for the same work.
struct PeerTime {
  std::string name;
  std::optional<Timing> timing;  // empty when it was not timed because it is wrong or failed
  std::string wrong;
};

struct Row {
  std::string family, op, shape, pass;  // pass: "fwd", "f+b" (forward and backward), "step"
  std::string dtype, kernel;            // "fp32", "avx512"
  Work work;
  double floor_s = 0;
  std::optional<Timing> weft;  // empty when it was not timed because it is wrong
  std::string weft_wrong;      // what differs from the reference; empty when nothing does
  std::vector<PeerTime> peers;

  double percent() const { return weft && weft->median_s > 0 ? 100 * floor_s / weft->median_s : 0; }
  const PeerTime* best_peer() const;  // null when none was timed
  // Time of the best peer divided by that of weft; 0 when one is missing.
  double speedup() const;
};

// Outputs and, unless it is a step, gradients of `function` on the small inputs of `subject` against its
// reference in fp64. "" when they agree, else where and by how much they do not, or what was thrown.
std::string difference(const OpCase& subject, const TensorFunction& function, double bound,
                       double gradient_bound);

// "step", "f+b" or "fwd"
std::string pass_of(const OpCase& subject, bool gradients);

// A call on other inputs than the one before, more of them than caches hold; makes the inputs now.
std::function<void()> timed_call(const OpCase& subject, const TensorFunction& function, bool gradients);

struct OneCall {
  double inputs_s = 0, call_s = 0;
};
// Makes inputs, then calls once.
OneCall call_on_new_inputs(const OpCase& subject, bool gradients);

struct OpsOptions {
  at::Device device = at::kCPU;
  TimingOptions timing;
  std::vector<std::shared_ptr<ExternalPeer>> peers;
};

// Checks, then times. A wrong op or peer is not timed; a peer of its own process is asked where it has the case, for the
// forward and backward pass under the case's name followed by ".backward". Inputs of successive calls lie in different memory,
// more than caches hold, so that the floor, which counts memory, is one.
std::vector<Row> run_op(const OpCase& subject, const Rates& rates, const OpsOptions& options);

}  // namespace weft::bench
