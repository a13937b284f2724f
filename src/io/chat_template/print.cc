// How values print: Python's str and repr.
#include <charconv>
#include <cmath>

#include "io/chat_template/unicode.h"
#include "io/chat_template/value.h"

namespace weft::jinja {
namespace {

// Parts inside a list or dict, joined; grows within the budget.
void append_part(std::string& out, const std::string& part) {
  expect_bytes(static_cast<int64_t>(out.size() + part.size()));
  out += part;
}

std::string repr_items(const Values& items, const char* open, const char* close) {
  std::string out = open;
  for (size_t i = 0; i < items.size(); ++i) append_part(out, (i ? ", " : "") + repr(items[i]));
  return out + close;
}

std::string repr_sequence(const Sequence& list) {
  switch (list.form) {
    case Form::list:
      return repr_items(list.items, "[", "]");
    case Form::group:
    case Form::tuple:
      return repr_items(list.items, "(", list.items.size() == 1 ? ",)" : ")");
    case Form::keys:
      return repr_items(list.items, "dict_keys([", "])");
    case Form::values:
      return repr_items(list.items, "dict_values([", "])");
    case Form::items:
      return repr_items(list.items, "dict_items([", "])");
    case Form::range:
      return list.step == 1 ? fmt::format("range({}, {})", list.begin, list.end)
                            : fmt::format("range({}, {}, {})", list.begin, list.end, list.step);
    case Form::generator:
      break;
  }
  return "<generator object>";
}

std::string repr_dict(const Dict& dict) {
  std::string out = "{";
  for (size_t i = 0; i < dict.entries.size(); ++i) {
    const auto& [key, value] = dict.entries[i];
    append_part(out, (i ? ", " : "") + repr(key) + ": " + repr(value));
  }
  return out + "}";
}

}  // namespace

std::string float_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char digits[40];
  const auto end = std::to_chars(digits, digits + sizeof digits, value, std::chars_format::scientific).ptr;
  const std::string shortest(digits, end);
  const auto mark = shortest.find('e');
  const int exponent = std::stoi(shortest.substr(mark + 1));
  if (exponent < -4 || exponent >= 16) return shortest;
  char fixed[400];
  std::string out(fixed, std::to_chars(fixed, fixed + sizeof fixed, value, std::chars_format::fixed).ptr);
  return out.find('.') == std::string::npos ? out + ".0" : out;
}

std::string repr_text(std::string_view text) {
  const bool single = text.find('\'') == std::string_view::npos || text.find('"') != std::string_view::npos;
  const char quote = single ? '\'' : '"';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const uint32_t point = next_point(text, at);
    if (point == static_cast<uint32_t>(quote) || point == '\\')
      (out += '\\') += static_cast<char>(point);
    else if (point == '\n')
      out += "\\n";
    else if (point == '\r')
      out += "\\r";
    else if (point == '\t')
      out += "\\t";
    else if (is_printable(point))
      out += text.substr(begin, at - begin);
    else
      out += point < 0x100     ? fmt::format("\\x{:02x}", point)
             : point < 0x10000 ? fmt::format("\\u{:04x}", point)
                               : fmt::format("\\U{:08x}", point);
  }
  return out += quote;
}

std::string str(const Value& value) {
  if (const auto* text = text_of(value)) return *text;
  return value.undefined() ? "" : repr(value);
}

std::string repr(const Value& value) {
  if (auto* budget = Budget::current()) budget->step();
  if (value.is_none()) return "None";
  if (const auto* flag = value.boolean()) return *flag ? "True" : "False";
  if (const auto* whole = value.integer()) return fmt::format("{}", *whole);
  if (const auto* real = value.real()) return float_text(*real);
  if (const auto* text = value.text())
    return text->safe ? "Markup(" + repr_text(text->bytes) + ")" : repr_text(text->bytes);
  if (const auto* list = value.sequence()) return repr_sequence(*list);
  if (const auto* map = value.dict()) return repr_dict(*map);
  if (const auto* object = value.object()) return object->shown();
  return "Undefined";
}

}  // namespace weft::jinja
