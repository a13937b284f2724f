// What rnn and rnn_parallel run on CUDA; none where no kernel takes the case.
#pragma once

#include <optional>

#include "ops/rnn/rnn.h"
#include "ops/rnn/rnn_parallel.h"

namespace weft::ops {

std::optional<RnnResult> rnn_cuda(const Rnn& in);
std::optional<RnnParallelResult> rnn_parallel_cuda(const Rnn& in, const Newton& newton);

}  // namespace weft::ops
