#include "nn/state.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "base/error.h"
#include "ops/shape.h"

namespace weft {
namespace {

// -1 marks an empty cache slot; other padding is never read.
at::Tensor pad_tokens(const at::Tensor& x, int64_t tokens) {
  if (x.size(1) >= tokens) return x;
  auto sizes = x.sizes().vec();
  sizes[1] = tokens - x.size(1);
  return at::cat({x, at::full(sizes, at::isIntegralType(x.scalar_type(), false) ? -1 : 0, x.options())}, 1);
}

}  // namespace

bool State::has(std::string_view name) const { return entries_.find(name) != entries_.end(); }

const at::Tensor& State::at(std::string_view name) const {
  const auto found = entries_.find(name);
  invariant(found != entries_.end(), "state has no entry {}", name);
  return found->second.value;
}

State::Entry& State::entry(std::string_view name) {
  const auto found = entries_.find(name);
  invariant(found != entries_.end(), "state has no entry {}", name);
  return found->second;
}

void State::set(std::string_view name, at::Tensor value) {
  auto& slot = entries_[std::string(name)];
  slot.value = std::move(value);
  slot.buffer.reset();
}

at::Tensor& State::writable(std::string_view name) {
  auto& slot = entry(name);
  // One reference from the entry itself; a buffer holds the storage once more.
  const size_t own = slot.buffer.defined() ? 2 : 1;
  if (slot.value.use_count() > 1 || slot.value.storage().use_count() > own) {
    slot.value = slot.value.clone(at::MemoryFormat::Contiguous);
    slot.buffer.reset();
  }
  return slot.value;
}

void State::append(std::string_view name, const at::Tensor& more) {
  auto& slot = entries_[std::string(name)];
  slot.grows = true;
  if (!slot.value.defined()) {
    slot.value = more;
    return;
  }
  if (more.size(1) == 0) return;
  if (slot.cursor.defined()) {
    invariant(more.size(1) == 1, "a state with fixed columns takes one token at a time, not {}",
              more.size(1));
    slot.value.index_copy_(1, slot.cursor, more);
    return;
  }
  const int64_t before = slot.value.size(1), after = before + more.size(1);
  const bool differentiable =
      at::GradMode::is_enabled() && (slot.value.requires_grad() || more.requires_grad());
  if (differentiable || before == 0) {
    slot.value = before == 0 ? more : at::cat({slot.value, more}, 1);
    slot.buffer.reset();
    return;
  }
  // Plain views: autograd's would hold on to the buffer, and it would look shared.
  const at::AutoDispatchBelowADInplaceOrView plain;
  const bool room = slot.buffer.defined() && slot.buffer.size(1) >= after && slot.buffer.use_count() == 1;
  if (!room) {
    auto sizes = slot.value.sizes().vec();
    sizes[1] = std::max(after, std::min(2 * before, before + 4096));
    auto buffer = at::empty(sizes, slot.value.options());
    buffer.narrow(1, 0, before).copy_(slot.value);
    slot.buffer = std::move(buffer);
  }
  slot.buffer.narrow(1, before, more.size(1)).copy_(more);
  slot.value = slot.buffer.narrow(1, 0, after);
}

void State::keep(std::string_view name, int64_t begin, int64_t end) {
  auto& slot = entry(name);
  supported(!slot.cursor.defined(), "a state with fixed columns cannot drop some of {}", name);
  slot.value = slot.value.narrow(1, begin, end - begin);
  if (begin > 0) slot.buffer.reset();
}

bool State::empty() const {
  return entries_.empty() && std::all_of(children_.begin(), children_.end(),
                                         [](const auto& child) { return child.second.empty(); });
}

int64_t State::bytes() const {
  int64_t total = 0;
  for (const auto& [name, slot] : entries_) total += static_cast<int64_t>(slot.value.nbytes());
  for (const auto& [name, child] : children_) total += child.bytes();
  return total;
}

template <class Change>
State State::changed(const Change& change) const {
  State result;
  for (const auto& [name, slot] : entries_) result.entries_[name] = change(name, slot);
  for (const auto& [name, child] : children_) result.children_[name] = child.changed(change);
  return result;
}

State State::with_columns(int64_t columns, const at::Tensor& cursor) const {
  const int64_t used = this->columns();
  return changed([&](const std::string& name, const Entry& slot) -> Entry {
    if (!slot.grows) return {slot.value.clone(at::MemoryFormat::Contiguous), {}, false, {}};
    require(slot.value.size(1) == used && used <= columns, "state: {} has {} columns; expected {}, of {}",
            name, slot.value.size(1), used, columns);
    const auto padded = pad_tokens(slot.value, columns);
    return {
        padded.is_same(slot.value) ? padded.clone(at::MemoryFormat::Contiguous) : padded, {}, true, cursor};
  });
}

State State::growing(int64_t used) const {
  return changed([&](const std::string&, const Entry& slot) -> Entry {
    const auto value = slot.grows ? slot.value.narrow(1, 0, used) : slot.value;
    return {value.clone(at::MemoryFormat::Contiguous), {}, slot.grows, {}};
  });
}

int64_t State::columns() const {
  for (const auto& [name, slot] : entries_)
    if (slot.grows) return slot.value.size(1);
  for (const auto& [name, child] : children_)
    if (const int64_t found = child.columns(); found >= 0) return found;
  return -1;
}

State State::detached() const {
  State result = *this;
  for (auto& [name, slot] : result.entries_) slot.value = slot.value.detach();
  for (auto& [name, child] : result.children_) child = child.detached();
  return result;
}

State State::select(const at::Tensor& rows) const {
  State result;
  for (const auto& [name, slot] : entries_) {
    supported(!slot.cursor.defined(), "a state with fixed columns cannot be selected from, {}", name);
    result.entries_[name] = {slot.value.index_select(0, rows), {}, slot.grows};
  }
  for (const auto& [name, child] : children_) result.children_[name] = child.select(rows);
  return result;
}

void State::assign(const at::Tensor& rows, const State& from) {
  for (auto& [name, slot] : entries_) {
    supported(!slot.cursor.defined(), "rows of a state with fixed columns cannot be replaced, {}", name);
    at::Tensor source = from.at(name);
    if (slot.grows) {
      const int64_t tokens = std::max(slot.value.size(1), source.size(1));
      slot.value = pad_tokens(slot.value, tokens);
      source = pad_tokens(source, tokens);
    }
    slot.value = slot.value.index_copy(0, rows, source);
    slot.buffer.reset();
  }
  for (auto& [name, child] : children_) child.assign(rows, from.children_.at(name));
}

std::map<std::string, at::Tensor> State::tensors() const {
  std::map<std::string, at::Tensor> all;
  collect("", all);
  return all;
}

void State::collect(const std::string& prefix, std::map<std::string, at::Tensor>& out) const {
  for (const auto& [name, slot] : entries_) out[prefix + name] = slot.value;
  for (const auto& [name, child] : children_) child.collect(prefix + name + "/", out);
}

State State::with(const std::map<std::string, at::Tensor>& tensors) const {
  size_t used = 0;
  State result = with(tensors, "", used);
  if (used != tensors.size()) {
    const auto known = this->tensors();
    for (const auto& [name, value] : tensors)
      require(known.count(name) > 0, "state: {} is not an entry of this model's state", name);
  }
  return result;
}

State State::with(const std::map<std::string, at::Tensor>& tensors, const std::string& prefix,
                  size_t& used) const {
  State result;
  for (const auto& [name, slot] : entries_) {
    const auto found = tensors.find(prefix + name);
    require(found != tensors.end(), "state: {} is missing", prefix + name);
    auto expected = slot.value.sizes().vec();
    if (slot.grows) expected[1] = -1;
    expected[0] = -1;
    require_shape("state", (prefix + name).c_str(), found->second, expected);
    result.entries_[name] = {found->second.to(slot.value.options()), {}, slot.grows, slot.cursor};
    ++used;
  }
  for (const auto& [name, child] : children_)
    result.children_[name] = child.with(tensors, prefix + name + "/", used);
  return result;
}

}  // namespace weft
