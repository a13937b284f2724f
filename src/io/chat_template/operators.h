// Arithmetic and access of template values, with Python's meaning.
#pragma once

#include "io/chat_template/value.h"

namespace weft::jinja {

// + - * / // % **; error for types that do not have it and for ints that leave 64 bits.
Value binary_operation(const std::string& op, const Value& a, const Value& b);
Value negative(const Value& value);

// value.name and value[key] as Jinja looks them up; undefined where there is nothing.
Value attribute_of(const Value& value, const std::string& name);
Value item_of(const Value& value, const Value& key);
// value[begin:end:step], each None or an int.
Value slice_of(const Value& value, const Value& begin, const Value& end, const Value& step);

// "mask % values", printf style (formatting.cc).
Value format_percent(const Value& mask, const Value& values);
// "mask".format(...) (formatting.cc).
std::string format_braces(std::string_view mask, const Arguments& arguments);
// A value by a format specification, as format(value, spec) does.
std::string format_value(const Value& value, std::string_view spec);

std::string escape_html(std::string_view text);
// Times `count`, within the budget.
std::string repeated(std::string_view text, int64_t count);

// A method of the value, bound to it; empty where the type has none of this name (methods.cc).
std::optional<Value> method_of(const Value& self, const std::string& name);

}  // namespace weft::jinja
