// The values of templates, which are Python's: None, bool, int (64 bits), float, str, list, tuple, dict, and what Jinja
// adds: undefined values, functions, namespaces, loops. Values never change, but for namespaces and loops.
#pragma once

#include <initializer_list>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include "io/chat_template/budget.h"

namespace weft::jinja {

class Evaluator;
class Value;

// Charges the current budget for as long as it lives.
class Counted {
 public:
  int depth() const { return depth_; }

 protected:
  explicit Counted(int64_t bytes, int depth = 1);
  ~Counted();
  Counted(const Counted&) = delete;
  Counted& operator=(const Counted&) = delete;
  void grow(int64_t bytes);

 private:
  Budget* budget_;
  int64_t bytes_;
  int depth_;
};

struct Undefined;
struct Text;
struct Sequence;
struct Dict;
class Object;

class Value {
 public:
  struct None {};
  using Data =
      std::variant<None, bool, int64_t, double, std::shared_ptr<const Undefined>, std::shared_ptr<const Text>,
                   std::shared_ptr<const Sequence>, std::shared_ptr<const Dict>, std::shared_ptr<Object>>;
  Value() = default;
  Value(bool value) : data_(value) {}
  Value(int64_t value) : data_(value) {}
  Value(double value) : data_(value) {}
  Value(std::string value);
  Value(const char* value) : Value(std::string(value)) {}
  template <class T>
  Value(std::shared_ptr<T> value) : data_(std::move(value)) {}

  bool is_none() const { return std::holds_alternative<None>(data_); }
  const bool* boolean() const { return std::get_if<bool>(&data_); }
  const int64_t* integer() const { return std::get_if<int64_t>(&data_); }
  const double* real() const { return std::get_if<double>(&data_); }
  const Undefined* undefined() const { return get<const Undefined>(); }
  const Text* text() const { return get<const Text>(); }
  const Sequence* sequence() const { return get<const Sequence>(); }
  const Dict* dict() const { return get<const Dict>(); }
  Object* object() const { return get<Object>(); }
  const Data& data() const { return data_; }
  int depth() const;

 private:
  template <class T>
  T* get() const {
    const auto* held = std::get_if<std::shared_ptr<T>>(&data_);
    return held ? held->get() : nullptr;
  }
  Data data_;
};

using Values = std::vector<Value>;

// Prints as "" and is false; anything else done with it is the error `message`.
struct Undefined : Counted {
  explicit Undefined(std::string text)
      : Counted(64 + static_cast<int64_t>(text.size())), message(std::move(text)) {}
  std::string message;
};

struct Text : Counted {
  explicit Text(std::string text, bool is_safe = false)
      : Counted(48 + static_cast<int64_t>(text.size())), bytes(std::move(text)), safe(is_safe) {}
  std::string bytes;  // UTF-8
  bool safe;          // escaped already: `escape` leaves it alone
};

enum class Form { list, tuple, keys, values, items, range, generator, group };

struct Sequence : Counted {
  Sequence(Values values, Form kind);
  Values items;
  Form form;
  int64_t begin = 0, end = 0, step = 1;  // of a range
  mutable size_t next = 0;               // of a generator, which gives each item once
};

// Keeps the order of insertion.
struct Dict : Counted {
  using Entries = std::vector<std::pair<Value, Value>>;
  explicit Dict(Entries list);
  const Value* find(const Value& key) const;  // error for a key that cannot be one
  const Value* find(const std::string& key) const;
  Entries entries;  // of equal keys the last value, in the place of the first

 private:
  std::unordered_map<std::string, size_t> index_;
};

struct Arguments {
  Values positional;
  std::vector<std::pair<std::string, Value>> named;
};

// Functions, methods, macros, loops, namespaces.
class Object : public Counted, public std::enable_shared_from_this<Object> {
 public:
  explicit Object(int64_t bytes = 64, int depth = 1) : Counted(bytes, depth) {}
  virtual ~Object() = default;
  virtual std::string type() const = 0;
  virtual std::string shown() const { return "<" + type() + ">"; }
  virtual std::optional<Value> attribute(const std::string&) { return std::nullopt; }
  virtual bool callable() const { return true; }
  virtual Value call(Evaluator&, Arguments&) { fail("'{}' object is not callable", type()); }
  virtual std::optional<int64_t> length() { return std::nullopt; }
};

Value make_undefined(std::string message);
Value make_list(Values items);
Value make_tuple(Values items);
Value make_sequence(Values items, Form form);
Value make_dict(Dict::Entries entries);
Value make_safe(std::string text);
Value from_json(const nlohmann::ordered_json& json);

// One item after another of anything that can be iterated: texts by characters, dicts by keys.
class Cursor {
 public:
  explicit Cursor(const Value& source);  // error for what cannot be iterated
  bool next(Value& out);
  std::optional<int64_t> length() const;  // none for generators

 private:
  Value source_;
  size_t at_ = 0;
};
Values items_of(const Value& value);

bool truth(const Value& value);
bool equal(const Value& a, const Value& b);
int compare(const Value& a, const Value& b,
            const char* op);  // < 0, 0, > 0; error for what has no order; NaN is 2
bool contains(const Value& container, const Value& item);
int64_t length(const Value& value);
std::string type_name(const Value& value);       // Python's: 'str', 'list', ...
std::string hash_key(const Value& value);        // equal for equal values; error for what cannot be a key
const std::string* text_of(const Value& value);  // the bytes of a text, or null
std::optional<int64_t> as_integer(const Value& value);  // of int and bool
std::optional<double> as_number(const Value& value);    // of float, int and bool
void require_defined(const Value& value);               // throws what an undefined value says

std::string str(const Value& value);   // as print shows it
std::string repr(const Value& value);  // as it stands inside a printed list
std::string repr_text(std::string_view text);
std::string float_text(double value);

// What the arguments mean for parameters of these names; empty where none was given. Errors name the function `what`.
std::vector<std::optional<Value>> bind(std::string_view what, const Arguments& arguments,
                                       std::initializer_list<const char*> names, size_t required = 0);

}  // namespace weft::jinja
