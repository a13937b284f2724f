// Speed of every mixer alone, beside the same mixer on the plain ATen references of its ops.
#pragma once

#include <string>
#include <vector>

#include "base/config.h"
#include "bench/timing.h"

namespace weft::bench {

struct MixerBench {
  int64_t width = 256, batch = 4, tokens = 512;  // of the whole form, forward and backward
  bool quick = false;                            // fewer samples
};

struct MixerRow {
  std::string mixer, shape;  // "4x512x256"
  int64_t parameters = 0;
  int64_t state_bytes = 0;        // of one sequence after `tokens` tokens, fp32
  Timing train, train_reference;  // forward and backward of the whole form
  Timing step, step_reference;    // one token of one sequence; no samples for mixers that look ahead
  double train_tokens = 0;        // in one call
  std::string left_out;           // why there are no times; "" when there are
};

// One row: the mixer that `node` describes ({mixer: NAME, ...}), fp32 on the CPU. Both kernels take turns. Mixers that need
// other layers' strands or options without a default are left out, with the reason.
MixerRow time_mixer(const Node& node, const MixerBench& options);

}  // namespace weft::bench
