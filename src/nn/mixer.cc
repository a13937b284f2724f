#include "nn/mixer.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/text.h"

namespace weft {
namespace {

std::map<std::string, MixerEntry>& mixer_registry() {
  static std::map<std::string, MixerEntry> entries;
  return entries;
}

}  // namespace

double Site::residual_init() const {
  return 1.0 / std::sqrt(static_cast<double>(std::max<int64_t>(1, residual_branches * num_layers)));
}

at::Tensor AffineMap::apply(const at::Tensor& before) const {
  return offset + (matrix ? at::matmul(factor, before) : factor * before);
}

AffineMap AffineMap::then(const AffineMap& next) const {
  invariant(matrix == next.matrix, "affine maps of different kinds do not compose");
  return {matrix ? at::matmul(next.factor, factor) : next.factor * factor, next.apply(offset), matrix};
}

State Summary::apply(const State& before) const {
  State after = rest;
  for (const auto& [name, map] : maps) after.set(name, map.apply(before.at(name)));
  for (const auto& [name, inner] : children) after.child(name) = inner.apply(before.children().at(name));
  return after;
}

at::Tensor SequenceMixer::run_reversed(const at::Tensor& x, const Context& context) {
  State state = initial_state(x.size(0), x.options());
  return run(x.flip(1), state, context.reversed()).flip(1);
}

at::Tensor SequenceMixer::tentative(const at::Tensor& x, State& state, const Context& context, Draft& draft) {
  draft.before = state;
  draft.x = x;
  draft.context = context;
  draft.tokens = x.size(1);
  return run(x, state, context);
}

// Runs again on the kept tokens, for each distinct count once.
void SequenceMixer::commit(const at::Tensor& n, State& state, Draft& draft) {
  invariant(n.dim() == 1 && n.size(0) == draft.x.size(0), "commit takes one count for each row");
  if (state.empty()) return;
  const auto counts = std::get<0>(at::_unique2(n));
  for (int64_t i = 0; i < counts.numel(); ++i) {
    const auto count = counts[i].item<int64_t>();
    invariant(count >= 0 && count <= draft.tokens, "commit({}) of {} draft tokens", count, draft.tokens);
    if (count == draft.tokens) continue;
    const auto rows = (n == count).nonzero().squeeze(1).to(draft.x.device());
    const bool all = counts.numel() == 1;
    State kept = all ? draft.before : draft.before.select(rows);
    const Context context = draft.context.slice(0, count);
    if (count > 0)
      run(all ? draft.x.slice(1, 0, count) : draft.x.index_select(0, rows).slice(1, 0, count), kept,
          all ? context : context.select(rows));
    if (all)
      state = std::move(kept);
    else
      state.assign(rows, kept);
  }
}

Summary SequenceMixer::summary(const at::Tensor&, const State&, const Context&) {
  throw Unsupported("this mixer provides no summary of a span as a map of states; run the spans in order");
}

int64_t SequenceMixer::state_bytes(int64_t, at::ScalarType dtype) const {
  return initial_state(1, at::TensorOptions().dtype(dtype)).bytes();
}

void register_mixer(MixerEntry entry) {
  const auto name = entry.name;
  require(mixer_registry().emplace(name, std::move(entry)).second,
          "a mixer called '{}' is registered already", name);
}

const MixerEntry& find_mixer(const Node& name) {
  const auto found = mixer_registry().find(name.as_string());
  if (found != mixer_registry().end()) return found->second;
  const auto known = mixer_names();
  const auto guess = nearest_word(name.as_string(), known);
  throw InputError(fmt::format("{}: '{}' is not a mixer{}; known: {}; those of a plug-in need --plugin",
                               name.where(), name.as_string(),
                               guess.empty() ? "" : ", did you mean '" + guess + "'?", join(known)));
}

std::vector<std::string> mixer_names() {
  std::vector<std::string> names;
  for (const auto& [name, entry] : mixer_registry()) names.push_back(name);
  return names;
}

std::unique_ptr<SequenceMixer> make_mixer(const Node& node, const Site& site,
                                          const std::vector<std::string>& ignore) {
  auto keys = ignore;
  keys.push_back("mixer");
  return find_mixer(node.at("mixer")).make(node, site, keys);
}

}  // namespace weft
