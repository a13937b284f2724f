// What filters of several files need of their arguments.
#pragma once

#include "io/chat_template/evaluator.h"

namespace weft::jinja {

// Reads an item's attribute "a.b.0" (or an int): keys, then attributes, as Jinja's filters do it.
class AttributeGetter {
 public:
  // `attribute` none: the item itself. `fallback` stands for what is undefined.
  explicit AttributeGetter(const std::optional<Value>& attribute,
                           std::optional<Value> fallback = std::nullopt);
  Value operator()(const Value& item) const;

 private:
  Values parts_;
  std::optional<Value> fallback_;
};

// A text in lower case, for comparisons that ignore case; other values as they are.
Value ignore_case(const Value& value);
bool flag_of(const std::optional<Value>& given, bool otherwise);
int64_t whole_of(const std::optional<Value>& given, int64_t otherwise, const char* what);
// The text that Jinja's soft_str gives: str of anything, "" of undefined.
std::string soft_text(const Value& value);
// Sorted by keys, stable; `reverse` keeps equal ones in their order too.
Values sorted_by(const Values& items, const std::vector<Values>& keys, bool reverse);

}  // namespace weft::jinja
