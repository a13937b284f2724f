// The same recurrences as `rnn` for cells without a recurrent matrix, solved for all tokens at once by Newton's
// method. Danieli et al. 2025, arXiv:2510.21450 (ParaRNN); Lim et al. 2024, arXiv:2309.12252 (DEER).
//   s_t = P(s_{t-1}, g_t)      every channel on its own: the Jacobian is S x S, diagonal for S = 1
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/rnn/rnn.h"

namespace weft::ops {

struct Newton {
  int64_t iterations = 3;  // each is one linear recurrence; T - 1 are exact for any cell
  // Channels of a sequence whose residual is larger are evaluated token by token, as `rnn` does it; also those
  // that are not finite. Infinity: never, which leaves a wrong result and gradient where Newton has not converged.
  double tolerance = 1e-5;
};

struct RnnParallelResult {
  at::Tensor h;         // [B, T, H, D] in the type of wx
  at::Tensor state;     // [S, B, H, D] after the last token
  at::Tensor residual;  // [] max |P(s_{t-1}, g_t) - s_t| of Newton's last iterate; not differentiable
};

// Takes an Rnn whose cell has J_r = 0: para_gru, para_lstm and registered ones. The CPU kernel runs those with
// `linearize` and one or two states.
// Gradients are those of the recurrence at the states found: one linear recurrence backwards, no iterations.
// Differentiable in everything but `starts`. T may be 0. One token is exact.
// Error against fp64 token by token relative to max|h|, with the default tolerance: fp32 1e-5 while the
// Jacobians stay below 1 (their products bound how residuals add up), bf16 and fp16 2e-2.
// Iterates that have not converged are those of the method on the CPU; on CUDA, chunk after chunk, they are others.
// Work: iterations + 2 evaluations of the cell a token.
RnnParallelResult rnn_parallel(const Rnn& in, const Newton& newton = {});

namespace reference {
RnnParallelResult rnn_parallel(const Rnn& in, const Newton& newton);
}

}  // namespace weft::ops
