// The tokens just before each token, across calls and packed documents: what hand-written convolutions read.
#pragma once

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "nn/context.h"

namespace weft {

class History {
 public:
  // `before` [B, P, ...] the last P inputs before x [B, T, ...], oldest first, 0 where there were fewer.
  History(const at::Tensor& before, const at::Tensor& x, const Context& context)
      : past_(before.size(1)), tokens_(x.size(1)), all_(at::cat({before, x}, 1)) {
    if (context.segments.defined())
      segments_ = at::cat({at::zeros({x.size(0), past_}, context.segments.options()), context.segments}, 1);
  }

  // x of `tokens` earlier, [B, T, ...]; 0 where that is another document or before the first token. 0 <= tokens <= P.
  at::Tensor lag(int64_t tokens) const { return seen(past_ - tokens, tokens_, segments_of(past_, tokens_)); }
  // The last P inputs of the last document: `before` of the next call.
  at::Tensor state() const { return seen(tokens_, past_, segments_of(past_ + tokens_ - 1, 1)); }

 private:
  at::Tensor segments_of(int64_t begin, int64_t count) const {
    return segments_.defined() && tokens_ > 0 ? segments_.narrow(1, begin, count) : at::Tensor();
  }
  at::Tensor seen(int64_t begin, int64_t count, const at::Tensor& documents) const {
    const auto rows = all_.narrow(1, begin, count);
    if (!documents.defined()) return rows;
    auto same = segments_.narrow(1, begin, count) == documents;
    while (same.dim() < rows.dim()) same = same.unsqueeze(-1);
    return rows.masked_fill(same.logical_not(), 0);
  }

  int64_t past_, tokens_;
  at::Tensor all_, segments_;
};

}  // namespace weft
