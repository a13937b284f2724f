// What rendering one template may cost. Templates come from strangers, so steps, memory and depth are all bounded.
#pragma once

#include <fmt/format.h>

#include <cstdint>

#include "base/error.h"

namespace weft::jinja {

struct Limits {
  int64_t steps = 20'000'000;  // one for each node evaluated and for every 64 bytes of text or 8 items made
  int64_t bytes = int64_t{1} << 27;  // of values that exist at a time, and of the output
  int depth = 1000;                  // of evaluations inside evaluations, macros included
};

constexpr int kNesting = 400;       // of a template's syntax tree
constexpr int kValueNesting = 200;  // of lists and dicts inside each other

// Something in a template that cannot be; the message does not say yet in which line.
class TemplateError : public InputError {
 public:
  using InputError::InputError;
};

template <class... Args>
[[noreturn]] void fail(fmt::format_string<Args...> message, Args&&... args) {
  throw TemplateError(fmt::format(message, std::forward<Args>(args)...));
}

// Counts while a template is rendered. The values of a rendering charge the budget that was current on their thread
// when they were made, and give back when they go; values made outside of a rendering charge none.
class Budget {
 public:
  explicit Budget(const Limits& limits) : limits_(limits), outer_(current_) { current_ = this; }
  ~Budget() { current_ = outer_; }
  Budget(const Budget&) = delete;
  Budget& operator=(const Budget&) = delete;
  static Budget* current() { return current_; }

  void step(int64_t cost = 1) {
    steps_ += cost;
    if (steps_ > limits_.steps) fail("the template takes more than {} steps", limits_.steps);
  }
  // Memory that is about to be taken: throws before it is.
  void take(int64_t bytes) {
    step(1 + bytes / 64);
    expect(bytes);
    bytes_ += bytes;
  }
  void expect(int64_t bytes) const {
    if (bytes > limits_.bytes - bytes_)
      fail("the template needs more than {} bytes of memory", limits_.bytes);
  }
  void give_back(int64_t bytes) { bytes_ -= bytes; }
  void enter() {
    if (depth_ >= limits_.depth) fail("the template nests more than {} evaluations", limits_.depth);
    ++depth_;
  }
  void leave() { --depth_; }

 private:
  static thread_local Budget* current_;
  Limits limits_;
  Budget* outer_;
  int64_t steps_ = 0, bytes_ = 0;
  int depth_ = 0;
};

// Throws when making a value of so many bytes would go beyond the budget: asked before large results are built.
inline void expect_bytes(int64_t count, int64_t each = 1) {
  auto* budget = Budget::current();
  if (!budget || count <= 0 || each <= 0) return;
  const bool huge = count > (int64_t{1} << 40) / each;
  budget->expect(huge ? int64_t{1} << 40 : count * each);
}

// Counts steps of the current budget, if there is one: for work in proportion to the size of values.
inline void spend(size_t steps) {
  if (auto* budget = Budget::current()) budget->step(static_cast<int64_t>(steps));
}

struct Level {
  explicit Level(Budget& b) : budget(b) { budget.enter(); }
  ~Level() { budget.leave(); }
  Level(const Level&) = delete;
  Level& operator=(const Level&) = delete;
  Budget& budget;
};

}  // namespace weft::jinja
