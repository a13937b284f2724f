// What stands behind `is`.
#include <unordered_map>

#include "io/chat_template/filter_arguments.h"
#include "io/chat_template/operators.h"
#include "io/chat_template/text_functions.h"

namespace weft::jinja {
namespace {

const Value& other(Arguments& arguments) {
  if (arguments.positional.size() != 1 || !arguments.named.empty()) fail("this test needs one argument");
  return arguments.positional[0];
}

template <char op, bool or_equal>
bool ordered(const Value& value, Arguments& arguments) {
  constexpr const char* name = op == '<' ? (or_equal ? "<=" : "<") : (or_equal ? ">=" : ">");
  const int order = compare(value, other(arguments), name);
  return order != 2 && ((or_equal && order == 0) || (op == '<' ? order < 0 : order > 0));
}

bool is_equal(const Value& value, Arguments& arguments) { return equal(value, other(arguments)); }
bool is_unequal(const Value& value, Arguments& arguments) { return !equal(value, other(arguments)); }

int64_t whole(const Value& value) {
  require_defined(value);
  const auto number = as_integer(value);
  if (!number) fail("this test needs whole numbers, got {}", type_name(value));
  return *number;
}

bool divisible(const Value& value, Arguments& arguments) {
  const int64_t by = whole(other(arguments));
  if (by == 0) fail("integer modulo by zero");
  return by == -1 || whole(value) % by == 0;
}

// The same object: for plain values, of the same type and equal.
bool same(const Value& value, Arguments& arguments) {
  const auto& b = other(arguments);
  if (value.sequence() || b.sequence()) return value.sequence() == b.sequence();
  if (value.dict() || b.dict()) return value.dict() == b.dict();
  return value.data().index() == b.data().index() && equal(value, b);
}

bool is_sequence(const Value& value, Arguments&) {
  const auto* list = value.sequence();
  return value.text() || value.dict() || value.undefined() ||
         (list && (list->form == Form::list || list->form == Form::tuple || list->form == Form::range ||
                   list->form == Form::group));
}

bool has_case(const Value& value, CharClass kind) { return is_case(str(value), kind); }

using Tests = std::unordered_map<std::string_view, TestFunction>;

const Tests& tests() {
  static const Tests all = {
      {"defined", [](const Value& v, Arguments&) { return !v.undefined(); }},
      {"undefined", [](const Value& v, Arguments&) { return v.undefined() != nullptr; }},
      {"none", [](const Value& v, Arguments&) { return v.is_none(); }},
      {"boolean", [](const Value& v, Arguments&) { return v.boolean() != nullptr; }},
      {"true", [](const Value& v, Arguments&) { return v.boolean() && *v.boolean(); }},
      {"false", [](const Value& v, Arguments&) { return v.boolean() && !*v.boolean(); }},
      {"integer", [](const Value& v, Arguments&) { return v.integer() != nullptr; }},
      {"float", [](const Value& v, Arguments&) { return v.real() != nullptr; }},
      {"number", [](const Value& v, Arguments&) { return as_number(v).has_value(); }},
      {"string", [](const Value& v, Arguments&) { return v.text() != nullptr; }},
      {"mapping", [](const Value& v, Arguments&) { return v.dict() != nullptr; }},
      {"iterable",
       [](const Value& v, Arguments&) { return v.text() || v.sequence() || v.dict() || v.undefined(); }},
      {"sequence", is_sequence},
      {"callable",
       [](const Value& v, Arguments&) { return v.undefined() || (v.object() && v.object()->callable()); }},
      {"escaped", [](const Value& v, Arguments&) { return v.text() && v.text()->safe; }},
      {"odd", [](const Value& v, Arguments&) { return whole(v) % 2 != 0; }},
      {"even", [](const Value& v, Arguments&) { return whole(v) % 2 == 0; }},
      {"divisibleby", divisible},
      {"in", [](const Value& v, Arguments& a) { return contains(other(a), v); }},
      {"sameas", same},
      {"upper", [](const Value& v, Arguments&) { return has_case(v, CharClass::upper); }},
      {"lower", [](const Value& v, Arguments&) { return has_case(v, CharClass::lower); }},
      {"eq", is_equal},
      {"==", is_equal},
      {"equalto", is_equal},
      {"ne", is_unequal},
      {"!=", is_unequal},
      {"lt", ordered<'<', false>},
      {"<", ordered<'<', false>},
      {"lessthan", ordered<'<', false>},
      {"le", ordered<'<', true>},
      {"<=", ordered<'<', true>},
      {"gt", ordered<'>', false>},
      {">", ordered<'>', false>},
      {"greaterthan", ordered<'>', false>},
      {"ge", ordered<'>', true>},
      {">=", ordered<'>', true>}};
  return all;
}

}  // namespace

TestFunction find_test(const std::string& name) {
  const auto at = tests().find(name);
  return at == tests().end() ? nullptr : at->second;
}

std::vector<std::string> test_names() {
  std::vector<std::string> names = {"filter", "test"};
  for (const auto& [name, run] : tests()) names.emplace_back(name);
  return names;
}

}  // namespace weft::jinja
