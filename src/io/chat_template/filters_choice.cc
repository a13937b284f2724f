// Filters that take other filters, tests or attributes: map, select and their kin.
#include "io/chat_template/filter_arguments.h"
#include "io/chat_template/operators.h"

namespace weft::jinja {
namespace {

Value map_filter(Evaluator& evaluator, const Value& value, Arguments& arguments) {
  Values out;
  if (arguments.positional.empty() && arguments.named.empty() && truth(value))
    fail("map requires a filter argument");
  if (arguments.positional.empty()) {
    const auto given = bind("map", arguments, {"attribute", "default"}, truth(value) ? 1 : 0);
    const AttributeGetter get(given[0], given[1]);
    if (truth(value))
      for (const auto& item : items_of(value)) out.push_back(get(item));
  } else if (truth(value)) {
    const auto name = str(arguments.positional[0]);
    Arguments rest = arguments;
    rest.positional.erase(rest.positional.begin());
    for (const auto& item : items_of(value)) {
      Arguments each = rest;
      out.push_back(evaluator.filter(name, item, each));
    }
  }
  return make_sequence(std::move(out), Form::generator);
}

template <bool keep, bool by_attribute>
Value select_filter(Evaluator& evaluator, const Value& value, Arguments& arguments) {
  Values out;
  if (!truth(value)) return make_sequence({}, Form::generator);
  Arguments rest = arguments;
  std::optional<Value> attribute;
  const auto take = [&] {
    auto taken = rest.positional.front();
    rest.positional.erase(rest.positional.begin());
    return taken;
  };
  if (by_attribute) {
    if (rest.positional.empty()) fail("Missing parameter for attribute name");
    attribute = take();
  }
  const AttributeGetter get(attribute);
  std::optional<std::string> test;
  if (!rest.positional.empty()) test = str(take());
  for (const auto& item : items_of(value)) {
    const auto seen = get(item);
    Arguments each = rest;
    const bool holds = test ? evaluator.test(*test, seen, each) : truth(seen);
    if (holds == keep) out.push_back(item);
  }
  return make_sequence(std::move(out), Form::generator);
}

Value default_filter(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("default", arguments, {"default_value", "boolean"});
  const bool replaced = value.undefined() || (flag_of(given[1], false) && !truth(value));
  return replaced ? given[0].value_or(Value("")) : value;
}

Value attr(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("attr", arguments, {"name"}, 1);
  const auto name = soft_text(*given[0]);
  require_defined(value);
  if (value.dict()) {  // attributes only, not keys
    const auto method = method_of(value, name);
    return method ? *method : make_undefined(fmt::format("'dict object' has no attribute '{}'", name));
  }
  return attribute_of(value, name);
}

}  // namespace

const std::vector<FilterTable>& choice_filters() {
  static const std::vector<FilterTable> filters = {{"map", map_filter},
                                                   {"select", select_filter<true, false>},
                                                   {"reject", select_filter<false, false>},
                                                   {"selectattr", select_filter<true, true>},
                                                   {"rejectattr", select_filter<false, true>},
                                                   {"default", default_filter},
                                                   {"d", default_filter},
                                                   {"attr", attr}};
  return filters;
}

}  // namespace weft::jinja
