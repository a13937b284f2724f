// Times ops against the machine's floor and a peer, after proving that both compute the right thing.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bench/machine.h"
#include "bench/op_case.h"
#include "bench/timing.h"

namespace weft::bench {

struct Row {
  std::string op, shape, pass;  // pass: "fwd", "f+b" (forward and backward), "step"
  std::string dtype, kernel;    // "fp32", "avx512"
  Work work;
  double floor_s = 0;
  std::optional<Timing> weft, peer;    // empty when it was not timed because it is wrong
  std::string weft_wrong, peer_wrong;  // what differs from the reference; empty when nothing does
  std::string peer_name;
  double percent() const { return weft && weft->median_s > 0 ? 100 * floor_s / weft->median_s : 0; }
  // Time of the peer divided by that of weft; 0 when one is missing.
  double speedup() const { return weft && peer && weft->median_s > 0 ? peer->median_s / weft->median_s : 0; }
};

// Outputs and, unless it is a step, gradients of `function` on the small inputs of `subject` against its
// reference in fp64. "" when they agree, else where and by how much they do not, or what was thrown.
std::string difference(const OpCase& subject, const TensorFunction& function, double bound,
                       double gradient_bound);

struct OpsOptions {
  at::Device device = at::kCPU;
  TimingOptions timing;
};

// Checks, then times. A wrong op or peer is not timed. Inputs of successive calls lie in different memory,
// more than caches hold, so that the floor, which counts memory, is one.
std::vector<Row> run_op(const OpCase& subject, const Rates& rates, const OpsOptions& options);

}  // namespace weft::bench
