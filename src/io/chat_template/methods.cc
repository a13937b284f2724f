// The methods that texts, lists and dicts have.
#include <algorithm>
#include <unordered_map>

#include "io/chat_template/bound_function.h"
#include "io/chat_template/operators.h"
#include "io/chat_template/text_functions.h"
#include "io/chat_template/unicode.h"

namespace weft::jinja {
namespace {

using Methods = std::unordered_map<std::string_view, Method>;

const std::string& self_text(const Value& self) { return self.text()->bytes; }

const std::string& text_argument(const std::optional<Value>& value, const char* method) {
  require_defined(*value);
  if (!value->text()) fail("{}() needs a text, got {}", method, type_name(*value));
  return value->text()->bytes;
}

int64_t integer_argument(const std::optional<Value>& value, int64_t otherwise) {
  if (!value || value->is_none()) return otherwise;
  require_defined(*value);
  const auto whole = as_integer(*value);
  if (!whole) fail("'{}' object cannot be interpreted as an integer", type_name(*value));
  return *whole;
}

template <std::string (*transform)(std::string_view)>
Value transformed(Evaluator&, const Value& self, Arguments& arguments) {
  bind("this method", arguments, {});
  return transform(self_text(self));
}

template <bool left, bool right>
Value strip_method(Evaluator&, const Value& self, Arguments& arguments) {
  const auto given = bind("strip", arguments, {"chars"});
  const bool blanks = !given[0] || given[0]->is_none();
  const auto text = strip(self_text(self), blanks ? nullptr : &text_argument(given[0], "strip"), left, right);
  return self.text()->safe ? make_safe(std::string(text)) : Value(std::string(text));
}

template <bool from_right>
Value split_method(Evaluator&, const Value& self, Arguments& arguments) {
  const auto given = bind("split", arguments, {"sep", "maxsplit"});
  const int64_t most = integer_argument(given[1], -1);
  const bool blanks = !given[0] || given[0]->is_none();
  Values parts;
  for (const auto part :
       split(self_text(self), blanks ? nullptr : &text_argument(given[0], "split"), most, from_right))
    parts.emplace_back(std::string(part));
  return make_list(std::move(parts));
}

Value splitlines_method(Evaluator&, const Value& self, Arguments& arguments) {
  const auto given = bind("splitlines", arguments, {"keepends"});
  Values lines;
  for (const auto line : split_lines(self_text(self), given[0] && truth(*given[0])))
    lines.emplace_back(std::string(line));
  return make_list(std::move(lines));
}

// The part of the text between two positions given as for a slice, in characters.
struct Range {
  std::string_view text;
  int64_t begin = 0;  // characters before it
  bool valid = true;  // false: begins behind the end, so that not even "" is found
};
Range range_of(std::string_view text, const std::optional<Value>& begin, const std::optional<Value>& end) {
  if (!begin && !end) return {text};
  const auto points = points_of(text);
  const auto count = static_cast<int64_t>(points.size());
  const auto place = [&](int64_t at) { return at < 0 ? std::max<int64_t>(at + count, 0) : at; };
  const int64_t first = place(integer_argument(begin, 0)),
                last = std::min(place(integer_argument(end, count)), count);
  if (first > last) return {{}, first, first <= count && last >= first};
  const auto offset = [&](int64_t at) {
    return at == count ? text.size()
                       : static_cast<size_t>(points[static_cast<size_t>(at)].data() - text.data());
  };
  return {text.substr(offset(first), offset(last) - offset(first)), first, true};
}

template <bool at_end>
Value affix_method(Evaluator&, const Value& self, Arguments& arguments) {
  const char* name = at_end ? "endswith" : "startswith";
  const auto given = bind(name, arguments, {at_end ? "suffix" : "prefix", "start", "end"}, 1);
  const auto range = range_of(self_text(self), given[1], given[2]);
  const auto fits = [&](const Value& affix) {
    const auto& text = text_argument(affix, name);
    return range.valid && (at_end ? range.text.ends_with(text) : range.text.starts_with(text));
  };
  const auto* tuple = given[0]->sequence();
  if (!tuple || tuple->form != Form::tuple) return fits(*given[0]);
  return std::any_of(tuple->items.begin(), tuple->items.end(), fits);
}

Value replace_method(Evaluator&, const Value& self, Arguments& arguments) {
  const auto given = bind("replace", arguments, {"old", "new", "count"}, 2);
  return replace(self_text(self), text_argument(given[0], "replace"), text_argument(given[1], "replace"),
                 integer_argument(given[2], -1));
}

template <bool last, bool must_exist>
Value find_method(Evaluator&, const Value& self, Arguments& arguments) {
  const auto given = bind("find", arguments, {"sub", "start", "end"}, 1);
  const auto range = range_of(self_text(self), given[1], given[2]);
  const auto& wanted = text_argument(given[0], "find");
  const size_t at = !range.valid ? std::string_view::npos
                    : last       ? find_last_text(range.text, wanted)
                                 : find_text(range.text, wanted);
  if (at == std::string_view::npos) {
    if (must_exist) fail("substring not found");
    return int64_t{-1};
  }
  return range.begin + static_cast<int64_t>(count_points(range.text.substr(0, at)));
}

Value count_method(Evaluator&, const Value& self, Arguments& arguments) {
  const auto given = bind("count", arguments, {"sub", "start", "end"}, 1);
  const auto range = range_of(self_text(self), given[1], given[2]);
  const auto& wanted = text_argument(given[0], "count");
  if (!range.valid) return int64_t{0};
  if (wanted.empty()) return static_cast<int64_t>(count_points(range.text)) + 1;
  int64_t count = 0;
  for (auto rest = range.text; !rest.empty(); ++count) {
    const size_t at = find_text(rest, wanted);
    if (at == std::string_view::npos) break;
    rest.remove_prefix(at + wanted.size());
  }
  return count;
}

Value join_method(Evaluator&, const Value& self, Arguments& arguments) {
  const auto given = bind("join", arguments, {"iterable"}, 1);
  require_defined(*given[0]);
  std::string out;
  bool first = true;
  Cursor cursor(*given[0]);
  for (Value item; cursor.next(item); first = false) {
    if (!item.text()) fail("join() needs texts, got {}", type_name(item));
    expect_bytes(static_cast<int64_t>(out.size() + self_text(self).size() + item.text()->bytes.size()));
    if (!first) out += self_text(self);
    out += item.text()->bytes;
  }
  return out;
}

template <CharClass kind>
Value is_method(Evaluator&, const Value& self, Arguments&) {
  return all_points(self_text(self), [](uint32_t point) { return is_class(point, kind); });
}

// isupper and islower: no cased character of the other kind, and one at least.
template <CharClass kind>
Value is_case_method(Evaluator&, const Value& self, Arguments&) {
  return is_case(self_text(self), kind);
}

Value isspace_method(Evaluator&, const Value& self, Arguments&) {
  return all_points(self_text(self), is_space);
}
Value isascii_method(Evaluator&, const Value& self, Arguments&) { return is_ascii(self_text(self)); }
Value isprintable_method(Evaluator&, const Value& self, Arguments&) {
  return self_text(self).empty() || all_points(self_text(self), is_printable);
}
Value istitle_method(Evaluator&, const Value& self, Arguments&) { return is_title(self_text(self)); }
Value isidentifier_method(Evaluator&, const Value& self, Arguments&) {
  const auto& text = self_text(self);
  size_t at = 0;
  return all_points(text, is_word) && !is_class(next_point(text, at), CharClass::numeric);
}

enum class Side { left, right, both, zeros };
template <Side side>
Value pad_method(Evaluator&, const Value& self, Arguments& arguments) {
  const auto given = bind("this method", arguments, {"width", "fillchar"}, 1);
  const auto fill =
      given[1] ? text_argument(given[1], "this method") : std::string(side == Side::zeros ? "0" : " ");
  if (count_points(fill) != 1) fail("the fill character must be exactly one character long");
  const auto& text = self_text(self);
  const int64_t room = integer_argument(given[0], 0) - static_cast<int64_t>(count_points(text));
  if (room <= 0) return text;
  if (side == Side::zeros) {
    const bool sign = text.starts_with('-') || text.starts_with('+');
    return text.substr(0, sign) + repeated("0", room) + text.substr(sign);
  }
  if (side == Side::left) return text + repeated(fill, room);
  if (side == Side::right) return repeated(fill, room) + text;
  return center(text, integer_argument(given[0], 0), fill);
}

template <bool last>
Value partition_method(Evaluator&, const Value& self, Arguments& arguments) {
  const auto given = bind("partition", arguments, {"sep"}, 1);
  const auto &text = self_text(self), &separator = text_argument(given[0], "partition");
  if (separator.empty()) fail("empty separator");
  const size_t at = last ? find_last_text(text, separator) : find_text(text, separator);
  if (at == std::string::npos)
    return make_tuple(last ? Values{Value(""), Value(""), Value(text)}
                           : Values{Value(text), Value(""), Value("")});
  return make_tuple({Value(text.substr(0, at)), Value(separator), Value(text.substr(at + separator.size()))});
}

template <bool at_end>
Value remove_method(Evaluator&, const Value& self, Arguments& arguments) {
  const auto given = bind("removeprefix", arguments, {"affix"}, 1);
  const auto &text = self_text(self), &affix = text_argument(given[0], "removeprefix");
  if (at_end) return text.ends_with(affix) ? text.substr(0, text.size() - affix.size()) : text;
  return text.starts_with(affix) ? text.substr(affix.size()) : text;
}

Value expandtabs_method(Evaluator&, const Value& self, Arguments& arguments) {
  const auto given = bind("expandtabs", arguments, {"tabsize"});
  return expand_tabs(self_text(self), integer_argument(given[0], 8));
}

Value format_method(Evaluator&, const Value& self, Arguments& arguments) {
  return format_braces(self_text(self), arguments);
}

Value format_map_method(Evaluator&, const Value& self, Arguments& arguments) {
  const auto given = bind("format_map", arguments, {"mapping"}, 1);
  require_defined(*given[0]);
  if (!given[0]->dict()) fail("format_map() needs a mapping, got {}", type_name(*given[0]));
  Arguments named;
  for (const auto& [key, value] : given[0]->dict()->entries) named.named.emplace_back(str(key), value);
  return format_braces(self_text(self), named);
}

const Methods& text_methods() {
  static const Methods methods = {
      {"upper", transformed<upper>},
      {"lower", transformed<lower>},
      {"title", transformed<title>},
      {"capitalize", transformed<capitalize>},
      {"swapcase", transformed<swapcase>},
      {"casefold", transformed<casefold>},
      {"strip", strip_method<true, true>},
      {"lstrip", strip_method<true, false>},
      {"rstrip", strip_method<false, true>},
      {"split", split_method<false>},
      {"rsplit", split_method<true>},
      {"splitlines", splitlines_method},
      {"startswith", affix_method<false>},
      {"endswith", affix_method<true>},
      {"replace", replace_method},
      {"find", find_method<false, false>},
      {"rfind", find_method<true, false>},
      {"index", find_method<false, true>},
      {"rindex", find_method<true, true>},
      {"count", count_method},
      {"join", join_method},
      {"isalpha", is_method<CharClass::alpha>},
      {"isalnum", is_method<CharClass::alnum>},
      {"isdecimal", is_method<CharClass::decimal>},
      {"isdigit", is_method<CharClass::digit>},
      {"isnumeric", is_method<CharClass::numeric>},
      {"isupper", is_case_method<CharClass::upper>},
      {"islower", is_case_method<CharClass::lower>},
      {"isspace", isspace_method},
      {"isascii", isascii_method},
      {"isprintable", isprintable_method},
      {"istitle", istitle_method},
      {"isidentifier", isidentifier_method},
      {"ljust", pad_method<Side::left>},
      {"rjust", pad_method<Side::right>},
      {"center", pad_method<Side::both>},
      {"zfill", pad_method<Side::zeros>},
      {"partition", partition_method<false>},
      {"rpartition", partition_method<true>},
      {"removeprefix", remove_method<false>},
      {"removesuffix", remove_method<true>},
      {"expandtabs", expandtabs_method},
      {"format", format_method},
      {"format_map", format_map_method},
  };
  return methods;
}

Value list_index(Evaluator&, const Value& self, Arguments& arguments) {
  const auto given = bind("index", arguments, {"value", "start", "stop"}, 1);
  const auto& items = self.sequence()->items;
  const auto count = static_cast<int64_t>(items.size());
  const auto place = [&](int64_t at) { return std::clamp<int64_t>(at < 0 ? at + count : at, 0, count); };
  for (int64_t i = place(integer_argument(given[1], 0)); i < place(integer_argument(given[2], count)); ++i)
    if (equal(items[static_cast<size_t>(i)], *given[0])) return i;
  fail("{} is not in list", repr(*given[0]));
}

Value list_count(Evaluator&, const Value& self, Arguments& arguments) {
  const auto given = bind("count", arguments, {"value"}, 1);
  const auto& items = self.sequence()->items;
  return static_cast<int64_t>(
      std::count_if(items.begin(), items.end(), [&](const Value& item) { return equal(item, *given[0]); }));
}

Value list_copy(Evaluator&, const Value& self, Arguments&) { return self; }

template <Form form>
Value dict_view(Evaluator&, const Value& self, Arguments& arguments) {
  bind("this method", arguments, {});
  Values items;
  for (const auto& [key, value] : self.dict()->entries)
    items.push_back(form == Form::keys ? key : form == Form::values ? value : make_tuple({key, value}));
  return make_sequence(std::move(items), form);
}

Value dict_get(Evaluator&, const Value& self, Arguments& arguments) {
  const auto given = bind("get", arguments, {"key", "default"}, 1);
  const auto* found = self.dict()->find(*given[0]);
  return found ? *found : given[1].value_or(Value());
}

}  // namespace

std::optional<Value> method_of(const Value& self, const std::string& name) {
  static const Methods lists = {{"index", list_index}, {"count", list_count}, {"copy", list_copy}};
  static const Methods dicts = {{"items", dict_view<Form::items>},
                                {"keys", dict_view<Form::keys>},
                                {"values", dict_view<Form::values>},
                                {"get", dict_get},
                                {"copy", list_copy}};
  const auto* list = self.sequence();
  const Methods* methods = self.text()                                                       ? &text_methods()
                           : self.dict()                                                     ? &dicts
                           : list && (list->form == Form::list || list->form == Form::tuple) ? &lists
                                                                                             : nullptr;
  if (!methods) return std::nullopt;
  const auto at = methods->find(name);
  if (at == methods->end() || (name == "copy" && list && list->form == Form::tuple)) return std::nullopt;
  return bound_function(name, self, at->second);
}

}  // namespace weft::jinja
