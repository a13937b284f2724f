// Functions of C++ as values: global ones, and methods with the value they belong to.
#pragma once

#include "io/chat_template/evaluator.h"

namespace weft::jinja {

using Method = Value (*)(Evaluator&, const Value& self, Arguments&);

class BoundFunction final : public Object {
 public:
  BoundFunction(std::string name, Value self, Method run)
      : Object(64, self.depth() + 1), name_(std::move(name)), self_(std::move(self)), run_(run) {}
  std::string type() const override { return "builtin_function_or_method"; }
  std::string shown() const override { return "<built-in function " + name_ + ">"; }
  Value call(Evaluator& evaluator, Arguments& arguments) override {
    if (self_.text()) spend(self_.text()->bytes.size() / 16);
    return run_(evaluator, self_, arguments);
  }

 private:
  std::string name_;
  Value self_;
  Method run_;
};

inline Value bound_function(std::string name, Value self, Method run) {
  return std::static_pointer_cast<Object>(
      std::make_shared<BoundFunction>(std::move(name), std::move(self), run));
}

}  // namespace weft::jinja
