#include "io/chat_template/value.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "io/chat_template/text_functions.h"

namespace weft::jinja {
namespace {

int depth_of(const Values& items) {
  int depth = 0;
  for (const auto& item : items) depth = std::max(depth, item.depth());
  return depth + 1;
}

int depth_of(const Dict::Entries& entries) {
  int depth = 0;
  for (const auto& [key, value] : entries) depth = std::max({depth, key.depth(), value.depth()});
  return depth + 1;
}

}  // namespace

thread_local Budget* Budget::current_ = nullptr;

Counted::Counted(int64_t bytes, int depth) : budget_(Budget::current()), bytes_(bytes), depth_(depth) {
  if (depth > kValueNesting) fail("values are nested more than {} deep", kValueNesting);
  if (budget_) budget_->take(bytes_);
}

Counted::~Counted() {
  if (budget_) budget_->give_back(bytes_);
}

void Counted::grow(int64_t bytes) {
  if (budget_) budget_->take(bytes);
  bytes_ += bytes;
}

Value::Value(std::string value) : data_(std::make_shared<const Text>(std::move(value))) {}

int Value::depth() const {
  if (const auto* list = sequence()) return list->depth();
  if (const auto* map = dict()) return map->depth();
  if (const auto* held = object()) return held->depth();
  return 0;
}

Sequence::Sequence(Values values, Form kind)
    : Counted(64 + static_cast<int64_t>(values.size() * sizeof(Value)), depth_of(values)),
      items(std::move(values)),
      form(kind) {}

Dict::Dict(Entries list) : Counted(128 + static_cast<int64_t>(list.size()) * 160, depth_of(list)) {
  for (auto& [key, value] : list) {
    const auto [at, is_new] = index_.emplace(hash_key(key), entries.size());
    if (is_new)
      entries.emplace_back(std::move(key), std::move(value));
    else
      entries[at->second].second = std::move(value);
  }
}

const Value* Dict::find(const Value& key) const {
  const auto at = index_.find(hash_key(key));
  return at == index_.end() ? nullptr : &entries[at->second].second;
}

const Value* Dict::find(const std::string& key) const {
  const auto at = index_.find("s" + key);
  return at == index_.end() ? nullptr : &entries[at->second].second;
}

Value make_undefined(std::string message) { return std::make_shared<const Undefined>(std::move(message)); }
Value make_sequence(Values items, Form form) {
  return std::make_shared<const Sequence>(std::move(items), form);
}
Value make_list(Values items) { return make_sequence(std::move(items), Form::list); }
Value make_tuple(Values items) { return make_sequence(std::move(items), Form::tuple); }
Value make_dict(Dict::Entries entries) { return std::make_shared<const Dict>(std::move(entries)); }
Value make_safe(std::string text) { return std::make_shared<const Text>(std::move(text), true); }

Value from_json(const nlohmann::ordered_json& json) {
  using Type = nlohmann::ordered_json::value_t;
  switch (json.type()) {
    case Type::boolean:
      return json.get<bool>();
    case Type::number_unsigned:
      if (json.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max()))
        fail("the number {} does not fit into 64 bits with a sign", json.get<uint64_t>());
      return json.get<int64_t>();
    case Type::number_integer:
      return json.get<int64_t>();
    case Type::number_float:
      return json.get<double>();
    case Type::string:
      return json.get<std::string>();
    case Type::array: {
      Values items;
      for (const auto& item : json) items.push_back(from_json(item));
      return make_list(std::move(items));
    }
    case Type::object: {
      Dict::Entries entries;
      for (const auto& [key, value] : json.items()) entries.emplace_back(Value(key), from_json(value));
      return make_dict(std::move(entries));
    }
    default:
      return {};
  }
}

Cursor::Cursor(const Value& source) : source_(source) {
  if (!source.undefined() && !source.text() && !source.sequence() && !source.dict())
    fail("'{}' object is not iterable", type_name(source));
}

bool Cursor::next(Value& out) {
  if (auto* budget = Budget::current()) budget->step();
  if (const auto* list = source_.sequence()) {
    size_t& at = list->form == Form::generator ? list->next : at_;
    if (at >= list->items.size()) return false;
    out = list->items[at++];
    return true;
  }
  if (const auto* map = source_.dict()) {
    if (at_ >= map->entries.size()) return false;
    out = map->entries[at_++].first;
    return true;
  }
  if (const auto* text = text_of(source_)) {
    if (at_ >= text->size()) return false;
    const size_t begin = at_;
    next_point(*text, at_);
    out = Value(text->substr(begin, at_ - begin));
    return true;
  }
  return false;
}

std::optional<int64_t> Cursor::length() const {
  if (source_.sequence() && source_.sequence()->form == Form::generator) return std::nullopt;
  return jinja::length(source_);
}

Values items_of(const Value& value) {
  Cursor cursor(value);
  Values items;
  for (Value item; cursor.next(item);) items.push_back(item);
  return items;
}

const std::string* text_of(const Value& value) { return value.text() ? &value.text()->bytes : nullptr; }

std::optional<int64_t> as_integer(const Value& value) {
  if (const auto* flag = value.boolean()) return *flag ? 1 : 0;
  if (const auto* whole = value.integer()) return *whole;
  return std::nullopt;
}

std::optional<double> as_number(const Value& value) {
  if (const auto* real = value.real()) return *real;
  if (const auto whole = as_integer(value)) return static_cast<double>(*whole);
  return std::nullopt;
}

void require_defined(const Value& value) {
  if (const auto* undefined = value.undefined()) fail("{}", undefined->message);
}

bool truth(const Value& value) {
  if (const auto* flag = value.boolean()) return *flag;
  if (const auto* whole = value.integer()) return *whole != 0;
  if (const auto* real = value.real()) return *real != 0;
  if (const auto* text = text_of(value)) return !text->empty();
  if (const auto* list = value.sequence()) return list->form == Form::generator || !list->items.empty();
  if (const auto* map = value.dict()) return !map->entries.empty();
  if (auto* object = value.object()) return object->length().value_or(1) != 0;
  return false;
}

int64_t length(const Value& value) {
  if (const auto* text = text_of(value)) return static_cast<int64_t>(count_points(*text));
  if (const auto* map = value.dict()) return static_cast<int64_t>(map->entries.size());
  if (const auto* list = value.sequence(); list && list->form != Form::generator)
    return static_cast<int64_t>(list->items.size());
  if (auto* object = value.object())
    if (const auto count = object->length()) return *count;
  if (value.undefined()) return 0;
  fail("object of type '{}' has no len()", type_name(value));
}

std::string type_name(const Value& value) {
  if (value.is_none()) return "NoneType";
  if (value.boolean()) return "bool";
  if (value.integer()) return "int";
  if (value.real()) return "float";
  if (value.undefined()) return "Undefined";
  if (value.text()) return value.text()->safe ? "Markup" : "str";
  if (value.dict()) return "dict";
  if (const auto* list = value.sequence()) {
    constexpr const char* names[] = {"list",       "tuple", "dict_keys", "dict_values",
                                     "dict_items", "range", "generator", "_GroupTuple"};
    return names[static_cast<size_t>(list->form)];
  }
  return value.object()->type();
}

std::string hash_key(const Value& value) {
  if (auto* budget = Budget::current()) budget->step();
  if (value.is_none()) return "N";
  if (const auto* text = text_of(value)) {
    spend(text->size() / 64);
    return "s" + *text;
  }
  if (const auto whole = as_integer(value)) return fmt::format("i{}", *whole);
  if (const auto* real = value.real()) {
    const bool whole = std::abs(*real) < 9e18 && *real == std::floor(*real);
    return whole ? fmt::format("i{}", static_cast<int64_t>(*real)) : "f" + float_text(*real);
  }
  if (value.undefined()) return "u";
  if (const auto* list = value.sequence(); list && list->form == Form::tuple) {
    std::string key = "t";
    for (const auto& item : list->items) {
      const auto part = hash_key(item);
      key += fmt::format("{}:{}", part.size(), part);
    }
    return key;
  }
  if (value.object()) return fmt::format("o{}", static_cast<const void*>(value.object()));
  fail("unhashable type: '{}'", type_name(value));
}

bool equal(const Value& a, const Value& b) {
  if (auto* budget = Budget::current()) budget->step();
  if (as_integer(a) && as_integer(b)) return *as_integer(a) == *as_integer(b);
  if (as_number(a) && as_number(b)) return *as_number(a) == *as_number(b);
  if (a.data().index() != b.data().index()) return false;
  if (a.is_none()) return true;
  if (a.undefined()) return true;
  if (a.text()) {
    spend(a.text()->bytes.size() / 64);
    return a.text()->bytes == b.text()->bytes;
  }
  if (a.object()) return a.object() == b.object();
  if (a.sequence()) {
    const auto &x = *a.sequence(), &y = *b.sequence();
    if (&x == &y) return true;
    if (x.form != y.form || x.form == Form::generator || x.items.size() != y.items.size()) return false;
    return std::equal(x.items.begin(), x.items.end(), y.items.begin(), equal);
  }
  const auto &x = *a.dict(), &y = *b.dict();
  if (x.entries.size() != y.entries.size()) return false;
  return std::all_of(x.entries.begin(), x.entries.end(), [&](const auto& entry) {
    const auto* other = y.find(entry.first);
    return other && equal(entry.second, *other);
  });
}

int compare(const Value& a, const Value& b, const char* op) {
  if (auto* budget = Budget::current()) budget->step();
  require_defined(a);
  require_defined(b);
  const auto sign = [](const auto& x, const auto& y) { return x < y ? -1 : y < x ? 1 : 0; };
  if (as_integer(a) && as_integer(b)) return sign(*as_integer(a), *as_integer(b));
  if (as_number(a) && as_number(b))
    return std::isnan(*as_number(a)) || std::isnan(*as_number(b)) ? 2 : sign(*as_number(a), *as_number(b));
  if (a.text() && b.text()) {
    spend(a.text()->bytes.size() / 64);
    return a.text()->bytes.compare(b.text()->bytes);
  }
  const auto *x = a.sequence(), *y = b.sequence();
  const bool lists = x && y && x->form == y->form && (x->form == Form::list || x->form == Form::tuple);
  if (!lists) fail("'{}' not supported between instances of '{}' and '{}'", op, type_name(a), type_name(b));
  for (size_t i = 0; i < std::min(x->items.size(), y->items.size()); ++i)
    if (!equal(x->items[i], y->items[i])) return compare(x->items[i], y->items[i], op);
  return sign(x->items.size(), y->items.size());
}

bool contains(const Value& container, const Value& item) {
  if (const auto* text = text_of(container)) {
    if (!item.text()) {
      require_defined(item);
      fail("'in <string>' requires string as left operand, not {}", type_name(item));
    }
    if (auto* budget = Budget::current()) budget->step(static_cast<int64_t>(text->size() / 64));
    return find_text(*text, item.text()->bytes) != std::string::npos;
  }
  if (const auto* map = container.dict()) return map->find(item) != nullptr;
  if (container.object() || container.is_none() || as_number(container))
    fail("argument of type '{}' is not iterable", type_name(container));
  Cursor cursor(container);
  for (Value each; cursor.next(each);)
    if (equal(each, item)) return true;
  return false;
}

std::vector<std::optional<Value>> bind(std::string_view what, const Arguments& arguments,
                                       std::initializer_list<const char*> names, size_t required) {
  std::vector<std::optional<Value>> bound(names.size());
  if (arguments.positional.size() > names.size())
    fail("{} takes at most {} argument{}, {} given", what, names.size(), names.size() == 1 ? "" : "s",
         arguments.positional.size());
  for (size_t i = 0; i < arguments.positional.size(); ++i) bound[i] = arguments.positional[i];
  for (const auto& [name, value] : arguments.named) {
    const auto at =
        std::find_if(names.begin(), names.end(), [&](const char* known) { return name == known; });
    if (at == names.end()) fail("{} got an unexpected keyword argument '{}'", what, name);
    auto& slot = bound[static_cast<size_t>(at - names.begin())];
    if (slot) fail("{} got multiple values for argument '{}'", what, name);
    slot = value;
  }
  for (size_t i = 0; i < required; ++i)
    if (!bound[i]) fail("{} misses its argument '{}'", what, *(names.begin() + i));
  return bound;
}

}  // namespace weft::jinja
