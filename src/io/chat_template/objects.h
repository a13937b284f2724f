// The objects of templates that are no plain values.
#pragma once

#include "io/chat_template/evaluator.h"

namespace weft::jinja {

class Macro final : public Object {
 public:
  Macro(const Node& node, std::shared_ptr<Scope> scope) : node_(node), scope_(std::move(scope)) {}
  std::string type() const override { return "Macro"; }
  std::string shown() const override { return "<Macro '" + node_.name + "'>"; }
  std::optional<Value> attribute(const std::string& name) override;
  Value call(Evaluator& evaluator, Arguments& arguments) override {
    return evaluator.call_macro(node_, scope_, arguments);
  }

 private:
  const Node& node_;
  std::shared_ptr<Scope> scope_;
};

class Namespace final : public Object {
 public:
  std::string type() const override { return "Namespace"; }
  std::string shown() const override;
  bool callable() const override { return false; }
  std::optional<Value> attribute(const std::string& name) override;
  void set(const std::string& name, Value value);
  void clear() { names_.clear(); }

 private:
  std::vector<std::pair<std::string, Value>> names_;
};

// `loop` inside of a loop.
class Loop final : public Object {
 public:
  // `more` gives the next item, if there is one; `size` is known beforehand where the iterable has a length.
  Loop(const Node& node, std::shared_ptr<Scope> scope, std::function<bool(Value&)> more,
       std::optional<int64_t> size, int64_t depth)
      : node_(node), scope_(std::move(scope)), more_(std::move(more)), size_(size), depth_(depth) {}
  std::string type() const override { return "LoopContext"; }
  std::string shown() const override;
  std::optional<Value> attribute(const std::string& name) override;
  Value call(Evaluator& evaluator, Arguments& arguments) override;
  std::optional<int64_t> length() override { return size(); }
  bool next(Value& item);
  Value cycle(const Values& choices) const;
  bool changed(const Values& values);
  // The loop is over: it holds nothing any more, not even itself.
  void finish() {
    more_ = nullptr;
    last_changed_.reset();
  }

 private:
  const Value* peek();
  int64_t size();

  const Node& node_;
  std::shared_ptr<Scope> scope_;
  std::function<bool(Value&)> more_;
  std::optional<int64_t> size_;
  int64_t depth_, index_ = -1;
  Values ahead_;  // taken from `more_` before their turn, the next one last
  std::optional<Value> current_, before_;
  std::optional<Values> last_changed_;
};

}  // namespace weft::jinja
