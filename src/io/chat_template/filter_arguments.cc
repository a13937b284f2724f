#include "io/chat_template/filter_arguments.h"

#include <algorithm>
#include <numeric>

#include "io/chat_template/operators.h"
#include "io/chat_template/text_functions.h"

namespace weft::jinja {

AttributeGetter::AttributeGetter(const std::optional<Value>& attribute, std::optional<Value> fallback)
    : fallback_(std::move(fallback)) {
  if (fallback_ && fallback_->is_none()) fallback_.reset();
  if (!attribute || attribute->is_none()) return;
  if (!attribute->text()) {
    parts_.push_back(*attribute);
    return;
  }
  const std::string dot = ".";
  for (const auto part : split(attribute->text()->bytes, &dot, -1, false)) {
    const bool number =
        !part.empty() && part.size() < 18 && part.find_first_not_of("0123456789") == std::string_view::npos;
    parts_.push_back(number ? Value(static_cast<int64_t>(std::stoll(std::string(part))))
                            : Value(std::string(part)));
  }
}

Value AttributeGetter::operator()(const Value& item) const {
  auto value = item;
  for (const auto& part : parts_) {
    value = item_of(value, part);
    if (fallback_ && value.undefined()) value = *fallback_;
  }
  return value;
}

Value ignore_case(const Value& value) { return value.text() ? Value(lower(value.text()->bytes)) : value; }

bool flag_of(const std::optional<Value>& given, bool otherwise) { return given ? truth(*given) : otherwise; }

int64_t whole_of(const std::optional<Value>& given, int64_t otherwise, const char* what) {
  if (!given || given->is_none()) return otherwise;
  require_defined(*given);
  const auto whole = as_integer(*given);
  if (!whole) fail("{} must be a whole number, not {}", what, type_name(*given));
  return *whole;
}

std::string soft_text(const Value& value) { return str(value); }

Values sorted_by(const Values& items, const std::vector<Values>& keys, bool reverse) {
  std::vector<size_t> order(items.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto before = [&](size_t a, size_t b) {
    for (size_t i = 0; i < keys[a].size(); ++i)
      if (!equal(keys[a][i], keys[b][i])) return compare(keys[a][i], keys[b][i], "<") < 0;
    return false;
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return reverse ? before(b, a) : before(a, b); });
  Values out;
  for (const size_t i : order) out.push_back(items[i]);
  return out;
}

}  // namespace weft::jinja
