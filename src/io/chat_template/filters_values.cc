// Filters on numbers, tojson, and the search by name.
#include <charconv>
#include <cmath>
#include <unordered_map>

#include "io/chat_template/filter_arguments.h"
#include "io/chat_template/json_text.h"
#include "io/chat_template/operators.h"
#include "io/chat_template/text_functions.h"

namespace weft::jinja {
namespace {

std::string without_underscores(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool between = i > 0 && i + 1 < text.size() &&
                         std::isalnum(static_cast<unsigned char>(text[i - 1])) &&
                         std::isalnum(static_cast<unsigned char>(text[i + 1]));
    if (text[i] != '_' || !between) out += text[i];
  }
  return out;
}

std::optional<int64_t> parse_integer(const std::string& given, int64_t base) {
  auto text = without_underscores(strip(given, nullptr));
  const bool minus = text.starts_with('-');
  if (minus || text.starts_with('+')) text.erase(0, 1);
  if (text.size() > 1 && text[0] == '0') {
    const char letter = static_cast<char>(text[1] | 0x20);
    const int64_t named = letter == 'x' ? 16 : letter == 'o' ? 8 : letter == 'b' ? 2 : 0;
    if (named && (base == named || base == 0)) {
      base = named;
      text.erase(0, 2);
    }
  }
  if (base == 0) base = 10;
  if (base < 2 || base > 36) fail("int() base must be >= 2 and <= 36, or 0");
  text.insert(0, minus ? "-" : "");
  int64_t value = 0;
  const auto [stop, error] =
      std::from_chars(text.data(), text.data() + text.size(), value, static_cast<int>(base));
  if (stop != text.data() + text.size() || text.empty() || text == "-") return std::nullopt;
  if (error == std::errc::result_out_of_range) fail("'{}' does not fit into 64 bits", given.substr(0, 40));
  return error == std::errc() ? std::optional(value) : std::nullopt;
}

std::optional<double> parse_real(const std::string& given) {
  auto text = without_underscores(strip(given, nullptr));
  if (text.starts_with('+')) text.erase(0, 1);
  if (text.starts_with('+') || text.find_first_of("xXpP") != std::string::npos ||
      text.find('(') != std::string::npos)
    return std::nullopt;
  double value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (stop != text.data() + text.size() || text.empty() || error == std::errc::invalid_argument)
    return std::nullopt;
  if (error == std::errc::result_out_of_range) {
    const bool tiny = text.find("e-") != std::string::npos || text.find("E-") != std::string::npos;
    value = tiny ? 0.0 : HUGE_VAL;
    if (text.starts_with('-')) value = -value;
  }
  return value;
}

Value truncated(double value, const Value& otherwise) {
  if (!std::isfinite(value)) return otherwise;
  if (std::abs(value) > 9.2e18) fail("{} does not fit into 64 bits", float_text(value));
  return static_cast<int64_t>(value);
}

Value int_filter(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("int", arguments, {"default", "base"});
  const auto otherwise = given[0].value_or(Value(int64_t{0}));
  require_defined(value);
  if (const auto* text = text_of(value)) {
    if (const auto whole = parse_integer(*text, whole_of(given[1], 10, "base"))) return *whole;
    const auto real = parse_real(*text);
    return real ? truncated(*real, otherwise) : otherwise;
  }
  if (const auto whole = as_integer(value)) return *whole;
  return value.real() ? truncated(*value.real(), otherwise) : otherwise;
}

Value float_filter(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("float", arguments, {"default"});
  require_defined(value);
  std::optional<double> real = as_number(value);
  if (const auto* text = text_of(value)) real = parse_real(*text);
  return real ? Value(*real) : given[0].value_or(Value(0.0));
}

Value abs_filter(Evaluator&, const Value& value, Arguments&) {
  require_defined(value);
  if (const auto whole = as_integer(value)) return *whole < 0 ? negative(value) : Value(*whole);
  if (!value.real()) fail("bad operand type for abs(): '{}'", type_name(value));
  return std::abs(*value.real());
}

// Half to even, at the decimal digit `places` behind the point, by the exact value of the number.
double rounded(double value, int64_t places) {
  if (!std::isfinite(value) || places > 300) return value;
  if (places >= 0) {
    const auto text = fmt::format("{:.{}f}", value, places);
    return std::strtod(text.c_str(), nullptr);
  }
  const double unit = std::pow(10.0, static_cast<double>(-places));
  return std::nearbyint(value / unit) * unit;
}

Value round_filter(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("round", arguments, {"precision", "method"});
  const auto method = given[1] ? soft_text(*given[1]) : "common";
  const int64_t places = whole_of(given[0], 0, "precision");
  if (method != "common" && method != "ceil" && method != "floor")
    fail("method must be common, ceil or floor");
  require_defined(value);
  const auto number = as_number(value);
  if (!number) fail("round needs a number, got {}", type_name(value));
  if (method == "common" && as_integer(value) && places >= 0) return *as_integer(value);
  if (method == "common" && as_integer(value)) return static_cast<int64_t>(rounded(*number, places));
  if (method == "common") return rounded(*number, places);
  const double unit = std::pow(10.0, static_cast<double>(places));
  const double scaled = *number * unit;
  return (method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / unit;
}

Value tojson(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("tojson", arguments, {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonStyle style;
  style.ascii = flag_of(given[0], false);
  style.sorted = flag_of(given[3], false);
  if (given[1] && !given[1]->is_none()) {
    style.indent =
        given[1]->text() ? given[1]->text()->bytes : repeated(" ", whole_of(given[1], 0, "indent"));
    style.item_separator = ",";
  }
  if (given[2] && !given[2]->is_none()) {
    const auto pair = items_of(*given[2]);
    if (pair.size() != 2 || !pair[0].text() || !pair[1].text()) fail("tojson: separators are two texts");
    style.item_separator = pair[0].text()->bytes;
    style.key_separator = pair[1].text()->bytes;
  }
  return json_text(value, style);
}

Value filesizeformat(Evaluator&, const Value& value, Arguments& arguments) {
  const auto given = bind("filesizeformat", arguments, {"binary"});
  require_defined(value);
  auto number = as_number(value);
  if (value.text()) number = parse_real(value.text()->bytes);
  if (!number) fail("filesizeformat needs a number");
  const bool binary = flag_of(given[0], false);
  const double base = binary ? 1024 : 1000;
  if (*number == 1) return "1 Byte";
  if (*number < base) return fmt::format("{} Bytes", static_cast<int64_t>(*number));
  constexpr std::string_view letters = "kMGTPEZY";
  double unit = base;
  size_t i = 0;
  while (i + 1 < letters.size() && *number >= unit * base) unit *= base, ++i;
  const std::string letter(1, binary && i == 0 ? 'K' : letters[i]);
  return fmt::format("{:.1f} {}{}", *number / unit, letter, binary ? "iB" : "B");
}

const std::unordered_map<std::string_view, FilterFunction>& all_filters() {
  static const auto all = [] {
    std::unordered_map<std::string_view, FilterFunction> table;
    for (const auto* part : {&text_filters(), &sequence_filters(), &choice_filters(), &value_filters()})
      for (const auto& filter : *part) table.emplace(filter.name, filter.run);
    return table;
  }();
  return all;
}

}  // namespace

const std::vector<FilterTable>& value_filters() {
  static const std::vector<FilterTable> filters = {{"int", int_filter}, {"float", float_filter},
                                                   {"abs", abs_filter}, {"round", round_filter},
                                                   {"tojson", tojson},  {"filesizeformat", filesizeformat}};
  return filters;
}

FilterFunction find_filter(const std::string& name) {
  const auto at = all_filters().find(name);
  return at == all_filters().end() ? nullptr : at->second;
}

std::vector<std::string> filter_names() {
  std::vector<std::string> names;
  for (const auto& [name, run] : all_filters()) names.emplace_back(name);
  return names;
}

}  // namespace weft::jinja
