// value.name, value[key] and value[begin:end:step].
#include <algorithm>
#include <array>

#include "io/chat_template/operators.h"
#include "io/chat_template/unicode.h"

namespace weft::jinja {
namespace {

std::string object_name(const Value& value) {
  return value.is_none() ? "None" : "'" + type_name(value) + " object'";
}

Value no_attribute(const Value& value, const std::string& name) {
  return make_undefined(fmt::format("{} has no attribute '{}'", object_name(value), name));
}

// Methods that would change a value, and what reaches into Python itself, are shut.
bool is_forbidden(const Value& value, const std::string& name) {
  if (name.starts_with("__")) return true;
  constexpr std::array<std::string_view, 8> list = {"append", "clear",  "extend",  "insert",
                                                    "pop",    "remove", "reverse", "sort"};
  constexpr std::array<std::string_view, 5> dict = {"clear", "pop", "popitem", "setdefault", "update"};
  if (value.sequence() && value.sequence()->form == Form::list)
    return std::find(list.begin(), list.end(), name) != list.end();
  return value.dict() && std::find(dict.begin(), dict.end(), name) != dict.end();
}

std::optional<Value> own_attribute(const Value& value, const std::string& name) {
  if (is_forbidden(value, name))
    return make_undefined(fmt::format(
        "'{}' of a {} cannot be used in a template: values do not change, and Python is out of reach", name,
        type_name(value)));
  if (auto* object = value.object()) return object->attribute(name);
  if (const auto* list = value.sequence(); list && list->form == Form::group) {
    if (name == "grouper") return list->items[0];
    if (name == "list") return list->items[1];
  }
  return method_of(value, name);
}

bool has_places(const Sequence& list) {
  return list.form == Form::list || list.form == Form::tuple || list.form == Form::range ||
         list.form == Form::group;
}

std::optional<size_t> place(int64_t index, size_t size) {
  const auto count = static_cast<int64_t>(size);
  const int64_t at = index < 0 ? index + count : index;
  return at >= 0 && at < count ? std::optional(static_cast<size_t>(at)) : std::nullopt;
}

std::optional<Value> found_item(const Value& value, const Value& key) {
  if (const auto* map = value.dict()) {
    if (key.sequence() && key.sequence()->form != Form::tuple) return std::nullopt;
    if (key.dict()) return std::nullopt;
    const auto* found = map->find(key);
    return found ? std::optional(*found) : std::nullopt;
  }
  const auto index = as_integer(key);
  if (!index) return std::nullopt;
  if (const auto* text = text_of(value)) {
    if (is_ascii(*text)) {
      const auto at = place(*index, text->size());
      return at ? std::optional(Value(std::string(1, (*text)[*at]))) : std::nullopt;
    }
    spend(text->size() / 16);
    const auto points = points_of(*text);
    const auto at = place(*index, points.size());
    return at ? std::optional(Value(std::string(points[*at]))) : std::nullopt;
  }
  const auto* list = value.sequence();
  if (!list || !has_places(*list)) return std::nullopt;
  const auto at = place(*index, list->items.size());
  return at ? std::optional(list->items[*at]) : std::nullopt;
}

}  // namespace

Value attribute_of(const Value& value, const std::string& name) {
  require_defined(value);
  if (auto own = own_attribute(value, name)) return *own;
  if (const auto* map = value.dict())
    if (const auto* found = map->find(name)) return *found;
  return no_attribute(value, name);
}

Value item_of(const Value& value, const Value& key) {
  require_defined(value);
  if (auto found = found_item(value, key)) return *found;
  const auto* name = text_of(key);
  if (!name) return make_undefined(fmt::format("{} has no element {}", object_name(value), repr(key)));
  if (auto own = own_attribute(value, *name)) return *own;
  return no_attribute(value, *name);
}

Value slice_of(const Value& value, const Value& begin, const Value& end, const Value& step) {
  require_defined(value);
  const auto* text = text_of(value);
  const auto* list = value.sequence();
  const bool sliceable = text || (list && has_places(*list));
  if (!sliceable) return make_undefined(fmt::format("{} has no slices", object_name(value)));
  const auto bound = [](const Value& given, int64_t otherwise) {
    if (given.is_none()) return otherwise;
    require_defined(given);
    const auto whole = as_integer(given);
    if (!whole) fail("slice indices must be integers or None, not {}", type_name(given));
    return *whole;
  };
  const int64_t by = bound(step, 1), count = length(value);
  if (by == 0) fail("slice step cannot be zero");
  const int64_t low = by < 0 ? -1 : 0, high = by < 0 ? count - 1 : count;
  const auto clamp = [&](int64_t at) { return std::clamp(at < 0 ? at + count : at, low, high); };
  const int64_t first = begin.is_none() ? (by < 0 ? high : low) : clamp(bound(begin, 0));
  const int64_t last = end.is_none() ? (by < 0 ? low : high) : clamp(bound(end, 0));
  std::vector<size_t> places;
  for (int64_t at = first; by < 0 ? at > last : at < last;) {
    places.push_back(static_cast<size_t>(at));
    if (by > count || by < -count) break;
    at += by;
  }
  spend(static_cast<size_t>(count) / 16 + places.size() / 8);
  if (list) {
    Values items;
    for (const size_t at : places) items.push_back(list->items[at]);
    return make_sequence(std::move(items), list->form == Form::range ? Form::list : list->form);
  }
  std::string out;
  if (is_ascii(*text)) {
    for (const size_t at : places) out += (*text)[at];
  } else {
    const auto points = points_of(*text);
    for (const size_t at : places) out += points[at];
  }
  return text == nullptr || !value.text()->safe ? Value(std::move(out)) : make_safe(std::move(out));
}

}  // namespace weft::jinja
