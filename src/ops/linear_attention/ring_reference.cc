// The definition of decoding with a ring: the state that the entries stand for, then a step as it is defined.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include "ops/linear_attention/ring.h"

namespace weft::ops::reference {
namespace {

// state [H, K, V] after entries [0, count) of sequence b
at::Tensor state_after(const LinearAttentionRing& ring, int64_t b, int64_t count) {
  auto s = ring.state[b];
  for (int64_t e = 0; e < count; ++e) {
    const auto decay = ring.decays[b].select(1, e);  // [H, W]
    if (decay.size(1) > 0) s = s * decay.unsqueeze(-1);
    s = s + at::matmul(ring.keys[b].select(1, e).mT(), ring.values[b].select(1, e));
  }
  return s;
}

// The oldest `count` entries of sequence b into the state.
void fold(LinearAttentionRing& ring, int64_t b, int64_t count) {
  const int64_t left = ring.length[b].item<int64_t>() - count;
  ring.state[b].copy_(state_after(ring, b, count));
  for (const auto* x : {&ring.keys, &ring.values, &ring.decays}) {
    const auto entries = (*x)[b];
    entries.narrow(1, 0, left).copy_(entries.narrow(1, count, left).clone());
  }
  ring.length[b].fill_(left);
}

}  // namespace

void linear_attention_ring_fold(LinearAttentionRing& ring) {
  for (int64_t b = 0; b < ring.length.size(0); ++b) fold(ring, b, ring.length[b].item<int64_t>());
}

at::Tensor linear_attention_ring_step(const LinearAttention& given, LinearAttentionRing& ring) {
  const auto type = ring.state.scalar_type();
  auto in = given;
  std::vector<at::Tensor> states;
  for (int64_t b = 0; b < ring.length.size(0); ++b) {
    if (in.starts.defined() && in.starts[b][0].item<bool>()) {
      ring.state[b].zero_();
      ring.length[b].zero_();
    }
    const int64_t length = ring.length[b].item<int64_t>();
    if (length == ring.keys.size(2)) fold(ring, b, length - ring.keep);
    states.push_back(state_after(ring, b, ring.length[b].item<int64_t>()));
  }
  in.initial_state = at::stack(states);
  in.starts = at::Tensor();
  const auto y = reference::linear_attention(in).y;

  // The rows written, [B, H, .].
  const int64_t heads = in.v.size(2);
  const auto token = [&](const at::Tensor& x) { return x.to(type).select(1, 0); };
  const auto key = [&](const at::Tensor& x) { return token(x).repeat_interleave(heads / x.size(2), 1); };
  const auto read = [](const at::Tensor& state, const at::Tensor& x) {
    return at::matmul(x.unsqueeze(-2), state).squeeze(-2);
  };
  at::Tensor decay;
  if (in.log_decay.defined()) {
    decay = (in.log_decay.dim() == 1 ? in.log_decay.to(type).expand({in.v.size(0), -1}) : token(in.log_decay))
                .exp();
    if (decay.dim() == 2) decay = decay.unsqueeze(-1);
  }
  const auto strength = in.write.defined() ? in.write : in.beta;
  auto value = token(in.v);
  if (strength.defined()) value = token(strength).unsqueeze(-1) * value;
  if (in.beta.defined()) {
    const auto state = decay.defined() ? in.initial_state * decay.unsqueeze(-1) : in.initial_state;
    value = value - token(in.beta).unsqueeze(-1) * read(state, key(in.k));
  }
  std::vector<at::Tensor> keys{key(in.k)}, values{value};
  if (in.erase_read.defined()) {
    keys.insert(keys.begin(), key(in.erase_write));
    values.insert(values.begin(), read(in.initial_state, key(in.erase_read)));
  }
  for (int64_t b = 0; b < ring.length.size(0); ++b) {
    const int64_t entry = ring.length[b].item<int64_t>();
    for (size_t row = 0; row < keys.size(); ++row) {
      ring.keys[b].select(1, entry).select(1, static_cast<int64_t>(row)).copy_(keys[row][b]);
      ring.values[b].select(1, entry).select(1, static_cast<int64_t>(row)).copy_(values[row][b]);
    }
    if (decay.defined()) ring.decays[b].select(1, entry).copy_(decay[b]);
    ring.length[b].fill_(entry + 1);
  }
  return y;
}

}  // namespace weft::ops::reference
