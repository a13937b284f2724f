// Filters on lists, dicts and what else can be iterated.
#include <algorithm>
#include <unordered_set>

#include "io/chat_template/filter_arguments.h"
#include "io/chat_template/operators.h"
#include "io/chat_template/text_functions.h"

namespace weft::jinja {
namespace {

Value length_filter(Evaluator&, const Value& value, Arguments&) { return length(value); }

Value first(Evaluator&, const Value& value, Arguments&) {
  Value item;
  Cursor cursor(value);
  return cursor.next(item) ? item : make_undefined("No first item, sequence was empty.");
}

Value last(Evaluator&, const Value& value, Arguments&) {
  if (value.sequence() && value.sequence()->form == Form::generator)
    fail("'generator' object is not reversible");
  const auto items = items_of(value);
  return items.empty() ? make_undefined("No last item, sequence was empty.") : items.back();
}

Value list(Evaluator&, const Value& value, Arguments&) { return make_list(items_of(value)); }

Value items_filter(Evaluator&, const Value& value, Arguments&) {
  Values pairs;
  if (const auto* map = value.dict())
    for (const auto& [key, item] : map->entries) pairs.push_back(make_tuple({key, item}));
  else if (!value.undefined())
    fail("Can only get item pairs from a mapping.");
  return make_sequence(std::move(pairs), Form::generator);
}

Value join_filter(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("join", arguments, {"d", "attribute"});
  const auto between = given[0] ? str(*given[0]) : "";
  const AttributeGetter get(given[1]);
  std::string out;
  bool first_item = true;
  Cursor cursor(value);
  for (Value item; cursor.next(item); first_item = false) {
    const auto part = str(get(item));
    if (out.size() + between.size() + part.size() > out.capacity())
      expect_bytes(static_cast<int64_t>(2 * (out.size() + between.size() + part.size())));
    if (!first_item) out += between;
    out += part;
  }
  return out;
}

Value reverse(Evaluator&, const Value& value, Arguments&) {
  if (const auto* text = text_of(value)) {
    std::string out;
    const auto points = points_of(*text);
    for (auto at = points.rbegin(); at != points.rend(); ++at) out += *at;
    return out;
  }
  auto items = items_of(value);
  std::reverse(items.begin(), items.end());
  return make_sequence(std::move(items), Form::generator);
}

Value sort(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("sort", arguments, {"reverse", "case_sensitive", "attribute"});
  const bool by_case = flag_of(given[1], false);
  std::vector<AttributeGetter> getters;
  if (given[2] && given[2]->text()) {
    const std::string comma = ",";
    for (const auto part : split(given[2]->text()->bytes, &comma, -1, false))
      getters.emplace_back(Value(std::string(part)));
  } else {
    getters.emplace_back(given[2]);
  }
  const auto items = items_of(value);
  std::vector<Values> keys;
  for (const auto& item : items) {
    keys.emplace_back();
    for (const auto& get : getters) keys.back().push_back(by_case ? get(item) : ignore_case(get(item)));
  }
  return make_list(sorted_by(items, keys, flag_of(given[0], false)));
}

Value dictsort(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("dictsort", arguments, {"case_sensitive", "by", "reverse"});
  const auto by = given[1] ? soft_text(*given[1]) : "key";
  if (by != "key" && by != "value") fail("You can only sort by either \"key\" or \"value\"");
  require_defined(value);
  if (!value.dict()) fail("dictsort needs a mapping, got {}", type_name(value));
  Values items;
  std::vector<Values> keys;
  for (const auto& [key, item] : value.dict()->entries) {
    items.push_back(make_tuple({key, item}));
    const auto& chosen = by == "key" ? key : item;
    keys.push_back({flag_of(given[0], false) ? chosen : ignore_case(chosen)});
  }
  return make_list(sorted_by(items, keys, flag_of(given[2], false)));
}

Value unique(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("unique", arguments, {"case_sensitive", "attribute"});
  const AttributeGetter get(given[1]);
  std::unordered_set<std::string> seen;
  Values out;
  for (const auto& item : items_of(value)) {
    const auto key = get(item);
    if (seen.insert(hash_key(flag_of(given[0], false) ? key : ignore_case(key))).second) out.push_back(item);
  }
  return make_sequence(std::move(out), Form::generator);
}

template <bool largest>
Value extreme(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind(largest ? "max" : "min", arguments, {"case_sensitive", "attribute"});
  const AttributeGetter get(given[1]);
  const auto key_of = [&](const Value& item) {
    return flag_of(given[0], false) ? get(item) : ignore_case(get(item));
  };
  std::optional<Value> best, best_key;
  for (const auto& item : items_of(value)) {
    auto key = key_of(item);
    if (best) {
      const int order = compare(key, *best_key, largest ? ">" : "<");
      if (largest ? order <= 0 || order == 2 : order >= 0) continue;
    }
    best = item;
    best_key = std::move(key);
  }
  return best ? *best : make_undefined("No aggregated item, sequence was empty.");
}

Value sum(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("sum", arguments, {"attribute", "start"});
  const AttributeGetter get(given[0]);
  auto total = given[1].value_or(Value(int64_t{0}));
  if (total.text()) fail("sum() can't sum strings: use the filter join");
  for (const auto& item : items_of(value)) total = binary_operation("+", total, get(item));
  return total;
}

Value batch(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("batch", arguments, {"linecount", "fill_with"}, 1);
  const int64_t size = whole_of(given[0], 0, "linecount");
  Values rows, row;
  const auto flush = [&] { rows.push_back(make_list(std::exchange(row, {}))); };
  for (const auto& item : items_of(value)) {
    if (static_cast<int64_t>(row.size()) == size) flush();
    row.push_back(item);
  }
  if (!row.empty()) {
    if (given[1] && !given[1]->is_none() && static_cast<int64_t>(row.size()) < size) {
      expect_bytes(size, sizeof(Value));
      row.resize(static_cast<size_t>(size), *given[1]);
    }
    flush();
  }
  return make_sequence(std::move(rows), Form::generator);
}

Value slice(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("slice", arguments, {"slices", "fill_with"}, 1);
  const int64_t slices = whole_of(given[0], 0, "slices");
  const auto items = items_of(value);
  if (slices == 0) fail("integer division or modulo by zero");
  expect_bytes(slices, 128);
  const int64_t each = slices > 0 ? static_cast<int64_t>(items.size()) / slices : 0,
                longer = slices > 0 ? static_cast<int64_t>(items.size()) % slices : 0;
  Values rows;
  auto at = items.begin();
  for (int64_t i = 0; i < slices; ++i) {
    const auto end = at + each + (i < longer ? 1 : 0);
    Values row(at, end);
    at = end;
    if (given[1] && !given[1]->is_none() && i >= longer) row.push_back(*given[1]);
    rows.push_back(make_list(std::move(row)));
  }
  return make_sequence(std::move(rows), Form::generator);
}

// (grouper, list) pairs, which templates also read as .grouper and .list.
Value groupby(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("groupby", arguments, {"attribute", "default", "case_sensitive"}, 1);
  const AttributeGetter get(given[0], given[1]);
  const bool by_case = flag_of(given[2], false);
  const auto key_of = [&](const Value& item) { return by_case ? get(item) : ignore_case(get(item)); };
  const auto items = items_of(value);
  std::vector<Values> keys;
  for (const auto& item : items) keys.push_back({key_of(item)});
  Values groups, group;
  const auto flush = [&] {
    if (group.empty()) return;
    auto key = get(group.front());
    groups.push_back(make_sequence({std::move(key), make_list(std::exchange(group, {}))}, Form::group));
  };
  for (const auto& item : sorted_by(items, keys, false)) {
    if (!group.empty() && !equal(key_of(group.front()), key_of(item))) flush();
    group.push_back(item);
  }
  flush();
  return make_list(std::move(groups));
}

}  // namespace

const std::vector<FilterTable>& sequence_filters() {
  static const std::vector<FilterTable> filters = {{"length", length_filter},
                                                   {"count", length_filter},
                                                   {"first", first},
                                                   {"last", last},
                                                   {"list", list},
                                                   {"items", items_filter},
                                                   {"join", join_filter},
                                                   {"reverse", reverse},
                                                   {"sort", sort},
                                                   {"dictsort", dictsort},
                                                   {"unique", unique},
                                                   {"min", extreme<false>},
                                                   {"max", extreme<true>},
                                                   {"sum", sum},
                                                   {"batch", batch},
                                                   {"slice", slice},
                                                   {"groupby", groupby}};
  return filters;
}

}  // namespace weft::jinja
