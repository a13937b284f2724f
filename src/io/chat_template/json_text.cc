#include "io/chat_template/json_text.h"

#include <algorithm>
#include <cmath>

#include "io/chat_template/operators.h"
#include "io/chat_template/unicode.h"

namespace weft::jinja {
namespace {

class JsonWriter {
 public:
  explicit JsonWriter(const JsonStyle& style) : style_(style) {}

  void write(const Value& value, int64_t level) {
    if (auto* budget = Budget::current()) budget->step();
    const auto* list = value.sequence();
    if (value.text()) {
      quote(value.text()->bytes);
    } else if (list && (list->form == Form::list || list->form == Form::tuple)) {
      group('[', ']', list->items.size(), level, [&](size_t i) { write(list->items[i], level + 1); });
    } else if (const auto* map = value.dict()) {
      write_dict(*map, level);
    } else {
      add(scalar(value));
    }
  }
  std::string text;

 private:
  void add(std::string_view part) {
    if (text.size() + part.size() > text.capacity())
      expect_bytes(static_cast<int64_t>(2 * text.size() + part.size()));
    text += part;
  }

  static std::string scalar(const Value& value) {
    if (value.is_none()) return "null";
    if (const auto* flag = value.boolean()) return *flag ? "true" : "false";
    if (value.integer()) return str(value);
    if (const auto* real = value.real())
      return std::isnan(*real)   ? "NaN"
             : std::isinf(*real) ? (*real < 0 ? "-Infinity" : "Infinity")
                                 : float_text(*real);
    fail("Object of type {} is not JSON serializable", type_name(value));
  }

  void new_line(int64_t level) {
    if (!style_.indent) return;
    add("\n");
    add(repeated(*style_.indent, level));
  }

  template <class Each>
  void group(char open, char close, size_t count, int64_t level, Each each) {
    add(std::string(1, open));
    for (size_t i = 0; i < count; ++i) {
      if (i) add(style_.item_separator);
      new_line(level + 1);
      each(i);
    }
    if (count) new_line(level);
    add(std::string(1, close));
  }

  void write_dict(const Dict& dict, int64_t level) {
    auto entries = dict.entries;
    if (style_.sorted)
      std::stable_sort(entries.begin(), entries.end(),
                       [](const auto& a, const auto& b) { return compare(a.first, b.first, "<") < 0; });
    group('{', '}', entries.size(), level, [&](size_t i) {
      const auto& [key, value] = entries[i];
      if (!key.text() && !key.is_none() && !as_number(key))
        fail("keys must be str, int, float, bool or None, not {}", type_name(key));
      quote(key.text() ? key.text()->bytes : scalar(key));
      add(style_.key_separator);
      write(value, level + 1);
    });
  }

  void quote(std::string_view string) {
    add("\"");
    for (size_t at = 0; at < string.size();) {
      const size_t begin = at;
      const auto point = next_point(string, at);
      constexpr std::string_view special = "\"\\\n\r\t\f\b", letters = "\"\\nrtfb";
      const auto known = point < 128 ? special.find(static_cast<char>(point)) : std::string_view::npos;
      if (known != std::string_view::npos)
        add(std::string{'\\', letters[known]});
      else if (point < 32 || (style_.ascii && point > 126 && point != 127 && point < 0x10000))
        add(fmt::format("\\u{:04x}", point));
      else if (style_.ascii && point >= 0x10000)
        add(fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + ((point - 0x10000) >> 10),
                        0xDC00 + ((point - 0x10000) & 0x3FF)));
      else
        add(string.substr(begin, at - begin));
    }
    add("\"");
  }

  const JsonStyle& style_;
};

}  // namespace

std::string json_text(const Value& value, const JsonStyle& style) {
  JsonWriter writer(style);
  writer.write(value, 0);
  return std::move(writer.text);
}

}  // namespace weft::jinja
