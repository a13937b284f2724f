#include "io/chat_template/operators.h"

#include <cmath>
#include <limits>

namespace weft::jinja {
namespace {

[[noreturn]] void unsupported(const std::string& op, const Value& a, const Value& b) {
  require_defined(a);
  require_defined(b);
  fail("unsupported operand type(s) for {}: '{}' and '{}'", op == "**" ? "** or pow()" : op, type_name(a),
       type_name(b));
}

[[noreturn]] void too_large() { fail("a whole number leaves 64 bits"); }

int64_t floor_quotient(int64_t a, int64_t b) {
  if (a == std::numeric_limits<int64_t>::min() && b == -1) too_large();
  return a / b - (a % b != 0 && (a % b < 0) != (b < 0) ? 1 : 0);
}

int64_t integer_power(int64_t base, int64_t exponent) {
  int64_t out = 1;
  for (; exponent > 0; exponent >>= 1) {
    if ((exponent & 1) && __builtin_mul_overflow(out, base, &out)) too_large();
    if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) too_large();
  }
  return out;
}

Value integer_operation(const std::string& op, int64_t a, int64_t b) {
  int64_t out = 0;
  if ((op == "/" || op == "//" || op == "%") && b == 0)
    fail("{}division by zero", op == "/" ? "" : "integer modulo or ");
  if (op == "+" && !__builtin_add_overflow(a, b, &out)) return out;
  if (op == "-" && !__builtin_sub_overflow(a, b, &out)) return out;
  if (op == "*" && !__builtin_mul_overflow(a, b, &out)) return out;
  if (op == "/") return static_cast<double>(a) / static_cast<double>(b);
  if (op == "//") return floor_quotient(a, b);
  if (op == "%") return b == -1 ? 0 : a - floor_quotient(a, b) * b;
  if (op == "**" && b < 0) {
    if (a == 0) fail("0 cannot be raised to a negative power");
    return std::pow(static_cast<double>(a), static_cast<double>(b));
  }
  if (op == "**") return integer_power(a, b);
  too_large();
}

Value real_operation(const std::string& op, double a, double b) {
  if ((op == "/" || op == "//" || op == "%") && b == 0) fail("float division by zero");
  if (op == "+") return a + b;
  if (op == "-") return a - b;
  if (op == "*") return a * b;
  if (op == "/") return a / b;
  if (op == "**") {
    if (a == 0 && b < 0) fail("0.0 cannot be raised to a negative power");
    if (a < 0 && b != std::floor(b)) fail("a negative number raised to a fraction is no real number");
    return std::pow(a, b);
  }
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  if (op == "%") return rest == 0 ? std::copysign(0.0, b) : rest;
  const double quotient = (a - rest) / b;
  return quotient == 0 ? std::copysign(0.0, a / b) : std::floor(quotient + 0.5);
}

Value add_sequences(const Value& a, const Value& b) {
  const auto &x = *a.sequence(), &y = *b.sequence();
  expect_bytes(static_cast<int64_t>(x.items.size() + y.items.size()), sizeof(Value));
  Values items = x.items;
  items.insert(items.end(), y.items.begin(), y.items.end());
  return make_sequence(std::move(items), x.form);
}

Value add_texts(const Text& a, const Text& b) {
  expect_bytes(static_cast<int64_t>(a.bytes.size() + b.bytes.size()));
  if (!a.safe && !b.safe) return a.bytes + b.bytes;
  return make_safe((a.safe ? a.bytes : escape_html(a.bytes)) + (b.safe ? b.bytes : escape_html(b.bytes)));
}

Value times(const Value& value, int64_t count) {
  if (const auto* text = value.text()) {
    auto out = repeated(text->bytes, count);
    return text->safe ? make_safe(std::move(out)) : Value(std::move(out));
  }
  const auto& list = *value.sequence();
  Values items;
  if (count > 0 && !list.items.empty()) {
    expect_bytes(count, static_cast<int64_t>(list.items.size() * sizeof(Value)));
    for (int64_t i = 0; i < count; ++i) items.insert(items.end(), list.items.begin(), list.items.end());
  }
  return make_sequence(std::move(items), list.form);
}

bool can_repeat(const Value& value) {
  const auto* list = value.sequence();
  return value.text() || (list && (list->form == Form::list || list->form == Form::tuple));
}

}  // namespace

std::string repeated(std::string_view text, int64_t count) {
  if (count <= 0 || text.empty()) return "";
  expect_bytes(count, static_cast<int64_t>(text.size()));
  std::string out;
  out.reserve(text.size() * static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) out += text;
  return out;
}

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&#34;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  return out;
}

Value binary_operation(const std::string& op, const Value& a, const Value& b) {
  const auto x = as_integer(a), y = as_integer(b);
  if (x && y) return integer_operation(op, *x, *y);
  const auto u = as_number(a), v = as_number(b);
  if (u && v) return real_operation(op, *u, *v);
  if (op == "%" && a.text()) return format_percent(a, b);
  if (op == "+" && a.text() && b.text()) return add_texts(*a.text(), *b.text());
  if (op == "+" && can_repeat(a) && b.sequence() && a.sequence() && a.sequence()->form == b.sequence()->form)
    return add_sequences(a, b);
  if (op == "*" && can_repeat(a) && y) return times(a, *y);
  if (op == "*" && can_repeat(b) && x) return times(b, *x);
  require_defined(a);
  require_defined(b);
  if (op == "+" && can_repeat(a))
    fail("can only concatenate {} (not \"{}\") to {}", type_name(a), type_name(b), type_name(a));
  unsupported(op, a, b);
}

Value negative(const Value& value) {
  if (const auto whole = as_integer(value)) return integer_operation("-", 0, *whole);
  if (const auto* real = value.real()) return -*real;
  require_defined(value);
  fail("bad operand type for unary -: '{}'", type_name(value));
}

}  // namespace weft::jinja
