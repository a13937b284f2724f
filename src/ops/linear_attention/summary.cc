// The tokens as an affine map of the state before them: built from runs of linear_attention itself.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "base/error.h"
#include "ops/linear_attention/checks.h"
#include "ops/linear_attention/linear_attention.h"
#include "ops/shape.h"

namespace weft::ops {
namespace {

// With erase the map is a matrix for each head: the state that unit matrices become when nothing is written.
at::Tensor matrix_factor(LinearAttention in, at::ScalarType type) {
  const int64_t batch = in.v.size(0), tokens = in.v.size(1), heads = in.v.size(2), key_width = in.k.size(3);
  in.v = at::zeros({batch, tokens, heads, key_width}, in.v.options());
  in.initial_state =
      at::eye(key_width, in.v.options().dtype(type)).expand({batch, heads, key_width, key_width});
  return linear_attention(in).state;
}

// Without erase every key channel is multiplied with its decays; a document start inside leaves nothing.
at::Tensor decay_factor(const LinearAttention& in, at::ScalarType type) {
  const int64_t batch = in.v.size(0), tokens = in.v.size(1), heads = in.v.size(2), key_width = in.k.size(3);
  auto factor = at::ones({}, in.v.options().dtype(type));
  if (in.log_decay.defined()) {
    const auto g = in.log_decay.to(type);
    factor = g.dim() == 1 ? (g * static_cast<double>(tokens)).exp().view({1, heads, 1}) : g.sum(1).exp();
    if (g.dim() == 3) factor = factor.unsqueeze(-1);
  }
  factor = factor.expand({batch, heads, key_width}).unsqueeze(-1);  // [B, H, K, 1]
  if (!in.starts.defined()) return factor.contiguous();
  return at::where(in.starts.any(1).view({batch, 1, 1, 1}), at::zeros_like(factor), factor);
}

}  // namespace

LinearAttentionSummary linear_attention_summary(const LinearAttention& given) {
  check_linear_attention("linear_attention_summary", given);
  require(!given.initial_state.defined(),
          "linear_attention_summary: initial_state is given; the map is for any state");
  auto in = given;
  in.q = in.k;  // outputs are not used
  in.bonus = at::Tensor();
  const auto type = accumulate_type(in.v);
  const bool matrix = in.beta.defined() || in.erase_read.defined();
  const auto offset = linear_attention(in).state;
  return {matrix ? matrix_factor(in, type) : decay_factor(in, type), offset, matrix};
}

}  // namespace weft::ops
