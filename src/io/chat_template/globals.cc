// The functions that every template has.
#include "io/chat_template/bound_function.h"
#include "io/chat_template/objects.h"

namespace weft::jinja {
namespace {

constexpr int64_t kLongestRange = 100'000;  // as Jinja's sandbox has it

Value make_range(Evaluator&, const Value&, Arguments& arguments) {
  if (!arguments.named.empty()) fail("range takes no keyword arguments");
  int64_t bounds[3] = {0, 0, 1};
  const auto& given = arguments.positional;
  if (given.empty() || given.size() > 3) fail("range takes 1 to 3 arguments, {} given", given.size());
  for (size_t i = 0; i < given.size(); ++i) {
    require_defined(given[i]);
    const auto whole = as_integer(given[i]);
    if (!whole) fail("'{}' object cannot be interpreted as an integer", type_name(given[i]));
    bounds[given.size() == 1 ? 1 : i] = *whole;
  }
  const auto [begin, end, step] = bounds;
  if (step == 0) fail("range() arg 3 must not be zero");
  const auto span = step > 0 ? static_cast<__int128>(end) - begin : static_cast<__int128>(begin) - end;
  const __int128 stride = step > 0 ? static_cast<__int128>(step) : -static_cast<__int128>(step);
  const __int128 count = span <= 0 ? 0 : (span + stride - 1) / stride;
  if (count > kLongestRange) fail("a range has at most {} items", kLongestRange);
  expect_bytes(static_cast<int64_t>(count), sizeof(Value));
  Values items;
  for (int64_t i = 0; i < static_cast<int64_t>(count); ++i) items.emplace_back(begin + i * step);
  auto range = std::make_shared<Sequence>(std::move(items), Form::range);
  range->begin = begin, range->end = end, range->step = step;
  return std::shared_ptr<const Sequence>(range);
}

// The entries that dict(...) and namespace(...) are given: a dict or pairs, then keywords.
Dict::Entries entries_of(std::string_view what, const Arguments& arguments) {
  Dict::Entries entries;
  if (arguments.positional.size() > 1)
    fail("{} expected at most 1 argument, got {}", what, arguments.positional.size());
  if (!arguments.positional.empty()) {
    const auto& first = arguments.positional[0];
    require_defined(first);
    if (const auto* map = first.dict()) {
      entries = map->entries;
    } else {
      for (const auto& pair : items_of(first)) {
        const auto parts = items_of(pair);
        if (parts.size() != 2) fail("{} needs pairs, got an item with {} parts", what, parts.size());
        entries.emplace_back(parts[0], parts[1]);
      }
    }
  }
  for (const auto& [name, value] : arguments.named) entries.emplace_back(Value(name), value);
  return entries;
}

Value dict_function(Evaluator&, const Value&, Arguments& arguments) {
  return make_dict(entries_of("dict", arguments));
}

Value namespace_function(Evaluator& evaluator, const Value&, Arguments& arguments) {
  const auto made = std::make_shared<Namespace>();
  for (const auto& [key, value] : entries_of("namespace", arguments)) {
    if (!key.text()) fail("the names of a namespace are texts, not {}", type_name(key));
    made->set(key.text()->bytes, value);
  }
  evaluator.keep(made);
  return std::static_pointer_cast<Object>(made);
}

Value raise_exception(Evaluator&, const Value&, Arguments& arguments) {
  const auto given = bind("raise_exception", arguments, {"message"}, 1);
  fail("{}", str(*given[0]));
}

Value strftime_now(Evaluator& evaluator, const Value&, Arguments& arguments) {
  const auto given = bind("strftime_now", arguments, {"format"}, 1);
  require_defined(*given[0]);
  if (!given[0]->text()) fail("strftime_now needs a text, got {}", type_name(*given[0]));
  return evaluator.time_text(given[0]->text()->bytes);
}

// Values in turn: cycler("a", "b").next().
class Cycler final : public Object {
 public:
  explicit Cycler(Values items)
      : Object(static_cast<int64_t>(items.size() * sizeof(Value)) + 64), items_(std::move(items)) {}
  std::string type() const override { return "Cycler"; }
  bool callable() const override { return false; }
  std::optional<Value> attribute(const std::string& name) override {
    if (name == "current") return items_[at_];
    const auto self = Value(std::static_pointer_cast<Object>(shared_from_this()));
    if (name == "next")
      return bound_function(name, self, [](Evaluator&, const Value& cycler, Arguments&) {
        auto& it = *static_cast<Cycler*>(cycler.object());
        const auto value = it.items_[it.at_];
        it.at_ = (it.at_ + 1) % it.items_.size();
        return value;
      });
    if (name == "reset")
      return bound_function(name, self, [](Evaluator&, const Value& cycler, Arguments&) {
        static_cast<Cycler*>(cycler.object())->at_ = 0;
        return Value();
      });
    return std::nullopt;
  }

 private:
  Values items_;
  size_t at_ = 0;
};

// "" at the first call, then the separator.
class Joiner final : public Object {
 public:
  explicit Joiner(std::string separator) : separator_(std::move(separator)) {}
  std::string type() const override { return "Joiner"; }
  Value call(Evaluator&, Arguments&) override {
    return std::exchange(used_, true) ? separator_ : std::string();
  }

 private:
  std::string separator_;
  bool used_ = false;
};

Value cycler_function(Evaluator&, const Value&, Arguments& arguments) {
  if (arguments.positional.empty()) fail("at least one item has to be provided to cycler");
  for (const auto& item : arguments.positional)
    if (item.object()) fail("cycler takes plain values only");
  return std::static_pointer_cast<Object>(std::make_shared<Cycler>(arguments.positional));
}

Value joiner_function(Evaluator&, const Value&, Arguments& arguments) {
  const auto given = bind("joiner", arguments, {"sep"});
  return std::static_pointer_cast<Object>(std::make_shared<Joiner>(given[0] ? str(*given[0]) : ", "));
}

}  // namespace

std::optional<Value> global_function(const std::string& name) {
  constexpr std::pair<const char*, Method> all[] = {{"range", make_range},
                                                    {"dict", dict_function},
                                                    {"namespace", namespace_function},
                                                    {"raise_exception", raise_exception},
                                                    {"strftime_now", strftime_now},
                                                    {"cycler", cycler_function},
                                                    {"joiner", joiner_function}};
  for (const auto& [known, run] : all)
    if (name == known) return bound_function(name, {}, run);
  return std::nullopt;
}

}  // namespace weft::jinja
