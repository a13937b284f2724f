// "..." % values, "...".format(...) and format specifications, with Python's meaning.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "io/chat_template/operators.h"
#include "io/chat_template/unicode.h"

namespace weft::jinja {
namespace {

constexpr int64_t kWidest = 1'000'000;  // of a field; precisions are at most 400

struct Spec {
  std::string fill = " ";
  char align = 0, sign = '-', grouping = 0, type = 0;
  bool alternate = false, zeros = false;
  int64_t width = 0, precision = -1;
};

int64_t read_number(std::string_view text, size_t& at, int64_t most, const char* what) {
  int64_t value = 0;
  while (at < text.size() && text[at] >= '0' && text[at] <= '9') {
    value = value * 10 + (text[at++] - '0');
    if (value > most) fail("a {} of more than {} in a format", what, most);
  }
  return value;
}

Spec parse_spec(std::string_view text) {
  Spec spec;
  size_t at = 0;
  const auto is_align = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  const auto peek = [&] { return at < text.size() ? text[at] : '\0'; };
  if (!text.empty()) {
    size_t after = 0;
    next_point(text, after);
    if (after < text.size() && is_align(text[after])) {
      spec.fill = std::string(text.substr(0, after));
      spec.align = text[after];
      at = after + 1;
    } else if (is_align(text[0])) {
      spec.align = text[0];
      at = 1;
    }
  }
  if (peek() == '+' || peek() == '-' || peek() == ' ') spec.sign = text[at++];
  if (peek() == '#') spec.alternate = true, ++at;
  if (peek() == '0') {
    spec.zeros = true, ++at;
    if (!spec.align) spec.fill = "0";
  }
  spec.width = read_number(text, at, kWidest, "width");
  if (peek() == ',' || peek() == '_') spec.grouping = text[at++];
  if (peek() == '.') {
    ++at;
    if (peek() < '0' || peek() > '9') fail("Format specifier missing precision");
    spec.precision = read_number(text, at, 400, "precision");
  }
  if (at < text.size()) spec.type = text[at++];
  if (at < text.size()) fail("Invalid format specifier '{}'", text);
  return spec;
}

// digits[.digits] with a separator every `every` digits before the point.
std::string grouped(const std::string& number, char separator, size_t every) {
  const size_t point = std::min(number.find_first_of(".e"), number.size());
  std::string out;
  for (size_t i = 0; i < point; ++i) {
    if (i > 0 && (point - i) % every == 0) out += separator;
    out += number[i];
  }
  return out + number.substr(point);
}

std::string padded(const std::string& sign, const std::string& body, const Spec& spec, char natural) {
  const auto size = static_cast<int64_t>(count_points(sign) + count_points(body));
  const int64_t room = spec.width - size;
  const char align = spec.align ? spec.align : spec.zeros && natural == '>' ? '=' : natural;
  if (room <= 0) return sign + body;
  if (align == '=') return sign + repeated(spec.fill, room) + body;
  const int64_t left = align == '>' ? room : align == '^' ? room / 2 : 0;
  return repeated(spec.fill, left) + sign + body + repeated(spec.fill, room - left);
}

std::string sign_text(bool minus, char sign) {
  return minus ? "-" : sign == '+' ? "+" : sign == ' ' ? " " : "";
}

// The magnitude of a number as e, f, g (and E, F, G) with this precision write it.
std::string float_digits(double value, char type, int64_t precision, bool alternate) {
  if (std::isnan(value)) return type == 'E' || type == 'F' || type == 'G' ? "NAN" : "nan";
  if (std::isinf(value)) return type == 'E' || type == 'F' || type == 'G' ? "INF" : "inf";
  char text[1000];
  const char format[] = {
      '%', alternate ? '#' : '.', alternate ? '.' : '*', alternate ? '*' : type, alternate ? type : '\0',
      '\0'};
  const int size = std::snprintf(text, sizeof text, format, static_cast<int>(precision), std::abs(value));
  return std::string(text, static_cast<size_t>(std::clamp(size, 0, 999)));
}

std::string integer_digits(int64_t value, char type, bool alternate) {
  const uint64_t size = value < 0 ? ~static_cast<uint64_t>(value) + 1 : static_cast<uint64_t>(value);
  switch (type) {
    case 'x':
      return (alternate ? "0x" : "") + fmt::format("{:x}", size);
    case 'X':
      return (alternate ? "0X" : "") + fmt::format("{:X}", size);
    case 'o':
      return (alternate ? "0o" : "") + fmt::format("{:o}", size);
    case 'b':
      return (alternate ? "0b" : "") + fmt::format("{:b}", size);
    default:
      return fmt::format("{}", size);
  }
}

std::string format_integer(int64_t value, Spec spec) {
  if (spec.precision >= 0) fail("Precision not allowed in integer format specifier");
  if (spec.type == 'c') {
    std::string out;
    if (value < 0 || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000))
      fail("%c arg not in range(0x110000)");
    append_point(out, static_cast<uint32_t>(value));
    return padded("", out, spec, '<');
  }
  auto digits = integer_digits(value, spec.type, spec.alternate);
  if (spec.grouping)
    digits = grouped(digits, spec.grouping, spec.type && spec.type != 'd' && spec.type != 'n' ? 4 : 3);
  return padded(sign_text(value < 0, spec.sign), digits, spec, '>');
}

std::string format_real(double value, Spec spec) {
  std::string digits;
  const bool percent = spec.type == '%';
  if (!spec.type && spec.precision < 0) {
    digits = float_text(std::abs(value));
  } else if (!spec.type) {  // as g, but with one digit behind the point at least
    digits = float_digits(value, 'g', std::max<int64_t>(spec.precision, 1), spec.alternate);
    if (digits.find_first_of(".en") == std::string::npos) digits += ".0";
  } else {
    const char type = percent ? 'f' : spec.type == 'n' ? 'g' : spec.type;
    int64_t precision = spec.precision < 0 ? 6 : spec.precision;
    if ((type == 'g' || type == 'G') && precision == 0) precision = 1;
    digits = float_digits(percent ? value * 100 : value, type, precision, spec.alternate);
  }
  if (spec.grouping && std::isfinite(value)) digits = grouped(digits, spec.grouping, 3);
  return padded(sign_text(std::signbit(value) && !std::isnan(value), spec.sign),
                digits + (percent ? "%" : ""), spec, '>');
}

std::string first_points(const std::string& text, int64_t count) {
  if (count < 0) return text;
  size_t at = 0;
  for (int64_t i = 0; i < count && at < text.size(); ++i) next_point(text, at);
  return text.substr(0, at);
}

// --- printf style

class Percent {
 public:
  Percent(std::string_view mask, const Value& values, bool safe) : mask_(mask), values_(values), safe_(safe) {
    if (values.sequence() && values.sequence()->form == Form::tuple) tuple_ = values.sequence();
  }

  std::string run() {
    while (at_ < mask_.size()) {
      const size_t sign = std::min(mask_.find('%', at_), mask_.size());
      add(std::string(mask_.substr(at_, sign - at_)));
      at_ = sign + 1;
      if (sign < mask_.size()) conversion();
    }
    const bool all_used =
        tuple_ ? next_ >= tuple_->items.size() : used_ || values_.dict() || values_.sequence();
    if (!all_used) fail("not all arguments converted during string formatting");
    return std::move(out_);
  }

 private:
  void add(const std::string& text) {
    expect_bytes(static_cast<int64_t>(out_.size() + text.size()));
    out_ += text;
  }

  Value argument() {
    if (tuple_) {
      if (next_ >= tuple_->items.size()) fail("not enough arguments for format string");
      return tuple_->items[next_++];
    }
    if (used_) fail("not enough arguments for format string");
    used_ = true;
    return values_;
  }

  int64_t star_or_number(int64_t most, const char* what) {
    if (at_ < mask_.size() && mask_[at_] == '*') {
      ++at_;
      const auto whole = as_integer(argument());
      if (!whole) fail("* wants int");
      if (*whole > most || *whole < -most) fail("a {} of more than {} in a format", what, most);
      return *whole;
    }
    return read_number(mask_, at_, most, what);
  }

  void conversion() {
    Spec spec;
    std::optional<Value> keyed;
    if (at_ < mask_.size() && mask_[at_] == '(') {
      const size_t end = mask_.find(')', at_);
      if (end == std::string_view::npos) fail("incomplete format key");
      if (!values_.dict()) fail("format requires a mapping");
      const std::string key(mask_.substr(at_ + 1, end - at_ - 1));
      const auto* found = values_.dict()->find(key);
      if (!found) fail("the format's key '{}' is missing", key);
      keyed = *found;
      at_ = end + 1;
    }
    for (; at_ < mask_.size(); ++at_) {
      const char c = mask_[at_];
      if (c == '-')
        spec.align = '<';
      else if (c == '+')
        spec.sign = '+';
      else if (c == ' ')
        spec.sign = spec.sign == '+' ? '+' : ' ';
      else if (c == '#')
        spec.alternate = true;
      else if (c == '0')
        spec.zeros = true;
      else
        break;
    }
    spec.width = star_or_number(kWidest, "width");
    if (spec.width < 0) spec.align = '<', spec.width = -spec.width;
    if (at_ < mask_.size() && mask_[at_] == '.') {
      ++at_;
      spec.precision = std::max<int64_t>(star_or_number(400, "precision"), 0);
    }
    while (at_ < mask_.size() && (mask_[at_] == 'l' || mask_[at_] == 'h' || mask_[at_] == 'L')) ++at_;
    if (at_ >= mask_.size()) fail("incomplete format");
    const char type = mask_[at_++];
    if (type == '%') return add("%");
    const auto value = keyed ? *keyed : argument();
    add(converted(value, type, spec));
  }

  std::string converted(const Value& value, char type, Spec spec) const {
    if (type == 's' || type == 'r' || type == 'a') {
      auto text = type == 's' ? str(value) : repr(value);
      if (safe_ && !(value.text() && value.text()->safe)) text = escape_html(text);
      return padded("", first_points(text, spec.precision), without_zeros(spec), '>');
    }
    require_defined(value);
    if (type == 'c' && value.text()) {
      if (count_points(value.text()->bytes) != 1) fail("%c requires int or char");
      return padded("", value.text()->bytes, without_zeros(spec), '>');
    }
    if (spec.zeros && !spec.align) spec.fill = "0";
    const auto number = as_number(value);
    const bool whole = std::string_view("diuoxXc").find(type) != std::string_view::npos;
    if (!number) fail("%{} format: a real number is required, not {}", type, type_name(value));
    if (!whole) {
      if (std::string_view("eEfFgG").find(type) == std::string_view::npos)
        fail("unsupported format character '{}'", type);
      spec.type = type;
      return format_real(*number, spec);
    }
    auto integer = as_integer(value);
    if (!integer && (type == 'd' || type == 'i' || type == 'u')) {
      if (!std::isfinite(*number) || std::abs(*number) > 9e18)
        fail("%{} format: the number is too large", type);
      integer = static_cast<int64_t>(*number);
    }
    if (!integer) fail("%{} format: an integer is required, not {}", type, type_name(value));
    if (type == 'c') {
      spec.type = 'c', spec.precision = -1;
      return format_integer(*integer, spec);
    }
    auto digits = integer_digits(*integer, type == 'i' || type == 'u' ? 'd' : type, spec.alternate);
    const auto missing = spec.precision - static_cast<int64_t>(digits.size());
    if (missing > 0) digits = repeated("0", missing) + digits;
    return padded(sign_text(*integer < 0, spec.sign), digits, spec, '>');
  }

  static Spec without_zeros(Spec spec) {
    spec.zeros = false;
    return spec;
  }

  std::string_view mask_;
  const Value& values_;
  bool safe_, used_ = false;
  const Sequence* tuple_ = nullptr;
  size_t at_ = 0, next_ = 0;
  std::string out_;
};

// --- str.format

class Braces {
 public:
  explicit Braces(const Arguments& arguments) : arguments_(arguments) {}

  std::string run(std::string_view mask, int depth = 0) {
    if (depth > 2) fail("Max string recursion exceeded");
    std::string out;
    for (size_t at = 0; at < mask.size();) {
      const char c = mask[at++];
      if (c != '{' && c != '}') {
        out += c;
      } else if (at < mask.size() && mask[at] == c) {
        out += c;
        ++at;
      } else if (c == '}') {
        fail("Single '}}' encountered in format string");
      } else {
        const auto field = field_of(mask, at);
        at += field.size() + 1;
        const auto piece = replaced(field, depth);
        expect_bytes(static_cast<int64_t>(out.size() + piece.size()));
        out += piece;
      }
    }
    return out;
  }

 private:
  static std::string_view field_of(std::string_view mask, size_t at) {
    int open = 1;
    bool in_brackets = false;
    for (size_t end = at; end < mask.size(); ++end) {
      if (mask[end] == '[') in_brackets = true;
      if (mask[end] == ']') in_brackets = false;
      if (in_brackets) continue;
      open += mask[end] == '{' ? 1 : mask[end] == '}' ? -1 : 0;
      if (open == 0) return mask.substr(at, end - at);
    }
    fail("expected '}}' before end of string");
  }

  std::string replaced(std::string_view field, int depth) {
    size_t name_end = 0;
    for (bool brackets = false; name_end < field.size(); ++name_end) {
      if (field[name_end] == '[') brackets = true;
      if (field[name_end] == ']') brackets = false;
      if (!brackets && (field[name_end] == '!' || field[name_end] == ':')) break;
    }
    auto value = lookup(field.substr(0, name_end));
    auto rest = field.substr(name_end);
    if (rest.starts_with('!')) {
      const char conversion = rest.size() > 1 ? rest[1] : '\0';
      if (conversion != 's' && conversion != 'r' && conversion != 'a')
        fail("a conversion in a format must be s, r or a");
      value = conversion == 's' ? Value(str(value)) : Value(repr(value));
      rest.remove_prefix(2);
      if (!rest.empty() && rest[0] != ':') fail("expected ':' after conversion specifier");
    }
    if (rest.starts_with(':')) rest.remove_prefix(1);
    return format_value(value, run(rest, depth + 1));
  }

  Value lookup(std::string_view name) {
    const size_t end = std::min(name.find_first_of(".["), name.size());
    auto value = first_value(std::string(name.substr(0, end)));
    for (auto rest = name.substr(end); !rest.empty();) {
      if (rest[0] == '.') {
        const size_t stop = std::min(rest.find_first_of(".[", 1), rest.size());
        value = attribute_of(value, std::string(rest.substr(1, stop - 1)));
        require_defined(value);
        rest.remove_prefix(stop);
        continue;
      }
      const size_t close = rest.find(']');
      if (rest[0] != '[' || close == std::string_view::npos || close == 1)
        fail("a field of a format has a broken index");
      const std::string key(rest.substr(1, close - 1));
      const bool number = key.find_first_not_of("0123456789") == std::string::npos && key.size() < 18;
      value = item_of(value, number ? Value(static_cast<int64_t>(std::stoll(key))) : Value(key));
      require_defined(value);
      rest.remove_prefix(close + 1);
    }
    return value;
  }

  Value first_value(const std::string& name) {
    const bool number = name.find_first_not_of("0123456789") == std::string::npos;
    if (!number) {
      for (const auto& [known, value] : arguments_.named)
        if (known == name) return value;
      fail("the format's argument '{}' is missing", name);
    }
    if (name.size() > 9) fail("the format's argument {} is missing", name);
    const size_t index = name.empty() ? next_++ : static_cast<size_t>(std::stoll(name));
    if (index >= arguments_.positional.size())
      fail("the format's argument {} is missing: {} are given", index, arguments_.positional.size());
    return arguments_.positional[index];
  }

  const Arguments& arguments_;
  size_t next_ = 0;
};

}  // namespace

std::string format_value(const Value& value, std::string_view text) {
  if (text.empty()) return str(value);
  const auto spec = parse_spec(text);
  const bool for_integer = std::string_view("bcdoxXn").find(spec.type) != std::string_view::npos;
  const bool for_real = std::string_view("eEfFgG%").find(spec.type) != std::string_view::npos;
  if (const auto* whole = value.integer(); whole && (!spec.type || for_integer))
    return format_integer(*whole, spec);
  if (value.boolean() && spec.type && for_integer) return format_integer(*as_integer(value), spec);
  if (const auto* real = value.real(); real && (!spec.type || for_real || spec.type == 'n'))
    return format_real(*real, spec);
  if (const auto number = as_number(value); number && spec.type && for_real)
    return format_real(*number, spec);
  const bool plain = value.text() || value.boolean();
  if (!plain && !as_number(value)) {
    require_defined(value);
    fail("unsupported format string passed to {}.__format__", type_name(value));
  }
  if (!plain || (spec.type && spec.type != 's'))
    fail("Unknown format code '{}' for object of type '{}'", spec.type, type_name(value));
  if (spec.align == '=') fail("'=' alignment not allowed in string format specifier");
  return padded("", first_points(str(value), spec.precision), spec, '<');
}

Value format_percent(const Value& mask, const Value& values) {
  const bool safe = mask.text()->safe;
  auto text = Percent(mask.text()->bytes, values, safe).run();
  return safe ? make_safe(std::move(text)) : Value(std::move(text));
}

std::string format_braces(std::string_view mask, const Arguments& arguments) {
  return Braces(arguments).run(mask);
}

}  // namespace weft::jinja
