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
  return {at::cat({cached.k, fresh.k}, 1), at::cat({cached.v, fresh.v}, 1),
          at::cat({cached.positions, fresh.positions}, 1), join_segments(cached.positions, fresh)};
}

at::Tensor join_segments(const at::Tensor& cached, const Keys& fresh) {
  if (!fresh.segments.defined()) return {};
  return at::cat({at::zeros_like(cached), fresh.segments}, 1);
}

namespace {

void keep_columns(State& state, std::initializer_list<const char*> entries, int64_t begin, int64_t end) {
  for (const char* name : entries) state.keep(name, begin, end);
  state.keep("slots", begin, end);
}

}  // namespace

void keep_keys(State& state, int64_t before, const at::Tensor& n,
               std::initializer_list<const char*> entries) {
  const int64_t most = n.numel() ? n.max().item<int64_t>() : 0;
  keep_columns(state, entries, 0, before + most);
  const auto& slots = state.at("slots");
  const auto column = at::arange(before + most, slots.options()) - before;  // [L]
  const auto dropped = column >= n.to(slots.device()).unsqueeze(1);         // [B, L]
  if (dropped.any().item<bool>()) state.set("slots", at::where(dropped, -1, slots));
}

void forget_finished(State& state, const at::Tensor& segments, const Context& context,
                     std::initializer_list<const char*> entries) {
  if (!context.segments.defined() || context.segments.size(1) == 0) return;
  const auto last = context.segments.slice(1, -1);
  state.set("slots", at::where(segments == last, state.at("slots"), -1));
  const auto used = (state.at("slots") >= 0).any(0).nonzero();
  const int64_t first = used.numel() ? used[0].item<int64_t>() : state.at("slots").size(1);
  keep_columns(state, entries, first, state.at("slots").size(1));
}

}  // namespace weft
