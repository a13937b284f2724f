#include "io/chat_template/objects.h"

#include <algorithm>

#include "io/chat_template/bound_function.h"

namespace weft::jinja {

std::optional<Value> Macro::attribute(const std::string& name) {
  if (name == "name") return Value(node_.name);
  if (name == "caller") return Value(node_.names_caller);
  if (name == "catch_varargs") return Value(node_.names_varargs);
  if (name == "catch_kwargs") return Value(node_.names_kwargs);
  if (name != "arguments") return std::nullopt;
  Values names;
  for (const auto& parameter : node_.parameters) names.emplace_back(parameter);
  return make_tuple(std::move(names));
}

std::string Namespace::shown() const {
  std::optional<Level> level;
  if (auto* budget = Budget::current()) level.emplace(*budget);
  std::string out = "<Namespace {";
  for (size_t i = 0; i < names_.size(); ++i) {
    const auto part = (i ? ", " : "") + repr_text(names_[i].first) + ": " + repr(names_[i].second);
    expect_bytes(static_cast<int64_t>(out.size() + part.size()));
    out += part;
  }
  return out + "}>";
}

std::optional<Value> Namespace::attribute(const std::string& name) {
  for (const auto& [known, value] : names_)
    if (known == name) return value;
  return std::nullopt;
}

void Namespace::set(const std::string& name, Value value) {
  if (name.starts_with('_')) fail("a namespace has no attributes that begin with '_', as '{}' does", name);
  for (auto& [known, held] : names_)
    if (known == name) {
      held = std::move(value);
      return;
    }
  grow(static_cast<int64_t>(name.size()) + 64);
  names_.emplace_back(name, std::move(value));
}

bool Loop::next(Value& item) {
  if (!ahead_.empty()) {
    item = std::move(ahead_.back());
    ahead_.pop_back();
  } else if (!more_ || !more_(item)) {
    return false;
  }
  ++index_;
  before_ = std::exchange(current_, item);
  return true;
}

const Value* Loop::peek() {
  if (ahead_.empty()) {
    Value item;
    if (!more_ || !more_(item)) return nullptr;
    ahead_.push_back(std::move(item));
  }
  return &ahead_.back();
}

int64_t Loop::size() {
  if (size_) return *size_;
  Values rest(ahead_.rbegin(), ahead_.rend());
  for (Value item; more_ && more_(item);) {
    grow(sizeof(Value));
    rest.push_back(item);
  }
  size_ = static_cast<int64_t>(rest.size()) + index_ + 1;
  ahead_.assign(rest.rbegin(), rest.rend());
  return *size_;
}

Value Loop::cycle(const Values& choices) const {
  if (choices.empty()) fail("no items for cycling given");
  return choices[static_cast<size_t>(std::max<int64_t>(index_, 0)) % choices.size()];
}

bool Loop::changed(const Values& values) {
  const bool same = last_changed_ && last_changed_->size() == values.size() &&
                    std::equal(values.begin(), values.end(), last_changed_->begin(), equal);
  if (more_) last_changed_ = values;
  return !same;
}

std::string Loop::shown() const {
  return fmt::format("<LoopContext {}/{}>", index_ + 1, size_.value_or(index_ + 1));
}

std::optional<Value> Loop::attribute(const std::string& name) {
  if (name == "index") return Value(index_ + 1);
  if (name == "index0") return Value(index_);
  if (name == "first") return Value(index_ == 0);
  if (name == "last") return Value(peek() == nullptr);
  if (name == "length") return Value(size());
  if (name == "revindex") return Value(size() - index_);
  if (name == "revindex0") return Value(size() - index_ - 1);
  if (name == "depth") return Value(depth_ + 1);
  if (name == "depth0") return Value(depth_);
  if (name == "previtem")
    return before_ && index_ > 0 ? *before_ : make_undefined("there is no previous item");
  if (name == "nextitem") {
    const auto* item = peek();
    return item ? *item : make_undefined("there is no next item");
  }
  const auto self = std::static_pointer_cast<Object>(shared_from_this());
  if (name == "cycle")
    return bound_function(name, Value(self), [](Evaluator&, const Value& loop, Arguments& a) {
      return static_cast<Loop*>(loop.object())->cycle(a.positional);
    });
  if (name == "changed")
    return bound_function(name, Value(self), [](Evaluator&, const Value& loop, Arguments& a) {
      return Value(static_cast<Loop*>(loop.object())->changed(a.positional));
    });
  return std::nullopt;
}

Value Loop::call(Evaluator& evaluator, Arguments& arguments) {
  if (!node_.flag) fail("this loop must be marked 'recursive' to be called");
  const auto given = bind("loop", arguments, {"iterable"}, 1);
  return evaluator.run_loop(node_, scope_, *given[0], depth_ + 1);
}

}  // namespace weft::jinja
