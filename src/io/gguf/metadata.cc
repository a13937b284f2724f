#include "io/gguf/metadata.h"

#include <cmath>
#include <cstdlib>
#include <limits>

#include "base/error.h"
#include "base/text.h"

namespace weft {
namespace {

constexpr std::string_view kKindNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                           "bool", "string", "array", "u64", "i64", "f64"};

std::string kind_text(const GgufValue& value) {
  return value.kind == GgufKind::array ? fmt::format("an array of {}", gguf_kind_name(value.element))
                                       : std::string(gguf_kind_name(value.kind));
}

int64_t integer_of(const GgufValue& value, const std::string& where) {
  if (const auto* number = std::get_if<int64_t>(&value.value)) return *number;
  const auto* number = std::get_if<uint64_t>(&value.value);
  require(number, "{}: expected an integer, found {}", where, kind_text(value));
  require(*number <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()), "{}: {} is too large", where,
          *number);
  return static_cast<int64_t>(*number);
}

}  // namespace

std::string_view gguf_kind_name(GgufKind kind) {
  const auto at = static_cast<size_t>(kind);
  return at < std::size(kKindNames) ? kKindNames[at] : std::string_view();
}

double decimal_double(float value) {
  if (!std::isfinite(value)) return value;
  return std::strtod(fmt::format("{}", value).c_str(), nullptr);
}

bool GgufMetadata::add(const std::string& key, GgufValue value) {
  if (!index_.emplace(key, items_.size()).second) return false;
  items_.emplace_back(key, std::move(value));
  return true;
}

void GgufMetadata::set(const std::string& key, GgufValue value) {
  const auto name = full_key(key);
  if (const auto found = index_.find(name); found != index_.end())
    items_[found->second].second = std::move(value);
  else
    add(name, std::move(value));
}

void GgufMetadata::set_u32(const std::string& key, int64_t value) {
  invariant(value >= 0 && value <= std::numeric_limits<uint32_t>::max(), "{}: {} is no u32", key, value);
  set(key, {.kind = GgufKind::u32, .value = static_cast<uint64_t>(value)});
}
void GgufMetadata::set_f32(const std::string& key, double value) {
  set(key, {.kind = GgufKind::f32, .value = value});
}
void GgufMetadata::set_flag(const std::string& key, bool value) {
  set(key, {.kind = GgufKind::boolean, .value = value});
}
void GgufMetadata::set_text(const std::string& key, std::string value) {
  set(key, {.kind = GgufKind::string, .value = std::move(value)});
}
void GgufMetadata::set_i32s(const std::string& key, std::vector<int64_t> values) {
  set(key, {.kind = GgufKind::array, .element = GgufKind::i32, .value = std::move(values)});
}
void GgufMetadata::set_f32s(const std::string& key, std::vector<double> values) {
  set(key, {.kind = GgufKind::array, .element = GgufKind::f32, .value = std::move(values)});
}
void GgufMetadata::set_texts(const std::string& key, std::vector<std::string> values) {
  set(key, {.kind = GgufKind::array, .element = GgufKind::string, .value = std::move(values)});
}

std::string GgufMetadata::architecture() const { return text("general.architecture", ""); }

std::string GgufMetadata::full_key(std::string_view key) const {
  return key.starts_with('.') ? architecture() + std::string(key) : std::string(key);
}

std::string GgufMetadata::where(std::string_view key) const {
  return fmt::format("{}: {}", source_, full_key(key));
}

const GgufValue* GgufMetadata::find(std::string_view key) const {
  const auto found = index_.find(full_key(key));
  return found == index_.end() ? nullptr : &items_[found->second].second;
}

const GgufValue& GgufMetadata::need(std::string_view key) const {
  const auto* value = find(key);
  if (value) return *value;
  std::vector<std::string> keys;
  for (const auto& [name, unused] : items_) keys.push_back(name);
  const auto nearest = nearest_word(full_key(key), keys);
  throw InputError(fmt::format("{}: missing from the metadata{}", where(key),
                               nearest.empty() ? "" : ", nearest is '" + nearest + "'"));
}

int64_t GgufMetadata::integer(std::string_view key) const { return integer_of(need(key), where(key)); }
int64_t GgufMetadata::integer(std::string_view key, int64_t otherwise) const {
  return has(key) ? integer(key) : otherwise;
}

double GgufMetadata::number(std::string_view key) const {
  const auto& value = need(key);
  if (const auto* number = std::get_if<double>(&value.value))
    return value.kind == GgufKind::f32 ? decimal_double(static_cast<float>(*number)) : *number;
  return static_cast<double>(integer_of(value, where(key)));
}
double GgufMetadata::number(std::string_view key, double otherwise) const {
  return has(key) ? number(key) : otherwise;
}

bool GgufMetadata::flag(std::string_view key, bool otherwise) const {
  const auto* value = find(key);
  if (!value) return otherwise;
  require(value->kind == GgufKind::boolean, "{}: expected a bool, found {}", where(key), kind_text(*value));
  return std::get<bool>(value->value);
}

std::string GgufMetadata::text(std::string_view key) const {
  const auto& value = need(key);
  require(value.kind == GgufKind::string, "{}: expected a string, found {}", where(key), kind_text(value));
  return std::get<std::string>(value.value);
}
std::string GgufMetadata::text(std::string_view key, const std::string& otherwise) const {
  return has(key) ? text(key) : otherwise;
}

std::vector<int64_t> GgufMetadata::integers(std::string_view key) const {
  const auto* value = find(key);
  if (!value) return {};
  if (const auto* wide = std::get_if<std::vector<uint64_t>>(&value->value)) {
    std::vector<int64_t> result;
    for (const auto item : *wide)
      result.push_back(integer_of({.kind = GgufKind::u64, .value = item}, where(key)));
    return result;
  }
  const auto* list = std::get_if<std::vector<int64_t>>(&value->value);
  require(list, "{}: expected an array of integers, found {}", where(key), kind_text(*value));
  return *list;
}

std::vector<double> GgufMetadata::numbers(std::string_view key) const {
  const auto* value = find(key);
  if (!value) return {};
  const auto* list = std::get_if<std::vector<double>>(&value->value);
  require(list, "{}: expected an array of floats, found {}", where(key), kind_text(*value));
  auto result = *list;
  if (value->element == GgufKind::f32)
    for (auto& number : result) number = decimal_double(static_cast<float>(number));
  return result;
}

std::vector<std::string> GgufMetadata::texts(std::string_view key) const {
  const auto* value = find(key);
  if (!value) return {};
  const auto* list = std::get_if<std::vector<std::string>>(&value->value);
  require(list, "{}: expected an array of strings, found {}", where(key), kind_text(*value));
  return *list;
}

std::vector<int64_t> GgufMetadata::per_layer(std::string_view key, int64_t count) const {
  constexpr int64_t kMostLayers = 10'000;
  require(count >= 0 && count <= kMostLayers, "{}: {} layers, expected at most {}", where(key), count,
          kMostLayers);
  const auto& value = need(key);
  if (value.kind != GgufKind::array) return std::vector<int64_t>(static_cast<size_t>(count), integer(key));
  auto list = integers(key);
  require(static_cast<int64_t>(list.size()) >= count, "{}: {} values for {} layers", where(key), list.size(),
          count);
  list.resize(static_cast<size_t>(count));
  return list;
}

}  // namespace weft
