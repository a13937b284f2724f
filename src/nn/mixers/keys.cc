#include "nn/mixers/keys.h"

namespace weft {

Strand Keys::strand() const {
  Strand strand{.tensors = {{"k", k}, {"v", v}, {"positions", positions}}, .per_token = false};
  if (segments.defined()) strand.tensors["segments"] = segments;
  return strand;
}

Keys Keys::from(const Strand& strand) {
  Keys keys{strand.at("k"), strand.at("v"), strand.at("positions"), {}};
  if (strand.tensors.count("segments")) keys.segments = strand.at("segments");
  return keys;
}

Keys join_keys(const Keys& cached, const Keys& fresh) {
  if (cached.k.size(1) == 0) return fresh;
  Keys all{at::cat({cached.k, fresh.k}, 1),
           at::cat({cached.v, fresh.v}, 1),
           at::cat({cached.positions, fresh.positions}, 1),
           {}};
  if (fresh.segments.defined()) all.segments = at::cat({at::zeros_like(cached.positions), fresh.segments}, 1);
  return all;
}

void keep_keys(State& state, int64_t before, const at::Tensor& n) {
  const int64_t most = n.numel() ? n.max().item<int64_t>() : 0;
  for (const char* name : {"k", "v", "slots"}) state.keep(name, 0, before + most);
  const auto& slots = state.at("slots");
  const auto column = at::arange(before + most, slots.options()) - before;  // [L]
  const auto dropped = column >= n.to(slots.device()).unsqueeze(1);         // [B, L]
  if (dropped.any().item<bool>()) state.set("slots", at::where(dropped, -1, slots));
}

}  // namespace weft
