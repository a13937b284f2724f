// The definitions of the causal convolutions, one tap of the filter at a time.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "ops/conv/conv.h"
#include "ops/conv/long_conv.h"
#include "ops/shape.h"

namespace weft::ops::reference {

ShortConvResult short_conv(const ShortConv& in) {
  const auto type = accumulate_type(in.x);
  const int64_t batch = in.x.size(0), tokens = in.x.size(1), channels = in.x.size(2),
                past = in.weight.size(1) - 1;
  const auto before = in.initial_state.defined()
                          ? in.initial_state.to(type)
                          : at::zeros({batch, past, channels}, in.x.options().dtype(type));
  const auto x = at::cat({before, in.x.to(type)}, 1);  // [B, W - 1 + T, C]
  // The document of every row: 0 for the state, counting up at each start. Other documents are not seen.
  auto document = at::zeros({batch, past + tokens}, in.x.options().dtype(at::kLong));
  if (in.starts.defined())
    document = at::cat({document.narrow(1, 0, past), in.starts.to(at::kLong).cumsum(1)}, 1);
  const auto rows_seen_from = [&](int64_t row, const at::Tensor& documents) {
    const auto rows = x.narrow(1, row, documents.size(1));
    const auto same = document.narrow(1, row, documents.size(1)) == documents;
    return at::where(same.unsqueeze(-1), rows, at::zeros_like(rows));
  };

  const auto weight = in.weight.to(type), current = document.narrow(1, past, tokens);
  auto y = in.bias.defined() ? in.bias.to(type).expand({batch, tokens, channels})
                             : at::zeros({batch, tokens, channels}, in.x.options().dtype(type));
  for (int64_t j = 0; j <= past; ++j) y = y + weight.select(1, j) * rows_seen_from(j, current);
  if (in.silu) y = y * at::sigmoid(y);
  const auto last = document.narrow(1, past + tokens - 1, 1).expand({batch, past});
  return {y.to(in.x.scalar_type()), rows_seen_from(tokens, last).to(in.x.scalar_type())};
}

at::Tensor long_conv(const at::Tensor& u, const at::Tensor& kernel, const at::Tensor& starts) {
  const auto type = accumulate_type(u);
  const auto x = u.to(type), taps = kernel.to(type);
  const int64_t tokens = u.size(1);
  const auto document = starts.defined() ? starts.to(at::kLong).cumsum(1)
                                         : at::zeros({u.size(0), tokens}, u.options().dtype(at::kLong));
  auto y = at::zeros_like(x);
  for (int64_t s = 0; s < std::min(tokens, kernel.size(1)); ++s) {
    const int64_t reached = tokens - s;
    const auto same = document.narrow(1, s, reached) == document.narrow(1, 0, reached);
    const auto term = taps.select(1, s) * x.narrow(1, 0, reached) * same.unsqueeze(2).to(type);
    y = y + at::constant_pad_nd(term, {0, 0, s, 0});
  }
  return y.to(u.scalar_type());
}

}  // namespace weft::ops::reference
