#include "io/json_place.h"

#include <algorithm>
#include <cstdint>
#include <set>

#include "base/error.h"
#include "base/text.h"

namespace weft {

std::string JsonPlace::shown() const {
  std::string text = value_->dump(-1, ' ', true);
  if (text.size() > 60) text = text.substr(0, 57) + "...";
  return text;
}

void JsonPlace::require_kind(bool ok, const char* expected) const {
  if (!ok) throw InputError(fmt::format("{}: expected {}, found {}", where(), expected, shown()));
}

bool JsonPlace::has(const std::string& key) const {
  require_kind(value_->is_object(), "an object");
  return value_->contains(key) && !(*value_)[key].is_null();
}

JsonPlace JsonPlace::at(const std::string& key) const {
  require_kind(value_->is_object(), "an object");
  const auto found = value_->find(key);
  require(found != value_->end(), "{}: '{}' is missing", where(), key);
  return JsonPlace(&*found, where_ + (where_.ends_with(": ") ? "" : ".") + key);
}

std::vector<JsonPlace> JsonPlace::items() const {
  require_kind(value_->is_array(), "a list");
  std::vector<JsonPlace> places;
  places.reserve(value_->size());
  for (size_t i = 0; i < value_->size(); ++i)
    places.push_back(JsonPlace(&(*value_)[i], fmt::format("{}[{}]", where_, i)));
  return places;
}

std::vector<std::pair<std::string, JsonPlace>> JsonPlace::members() const {
  require_kind(value_->is_object(), "an object");
  std::vector<std::pair<std::string, JsonPlace>> places;
  for (const auto& [key, value] : value_->items()) places.emplace_back(key, at(key));
  return places;
}

void JsonPlace::only(std::initializer_list<const char*> known) const {
  const std::vector<std::string> names(known.begin(), known.end());
  for (const auto& [key, place] : members())
    require(std::find(names.begin(), names.end(), key) != names.end(),
            "{}: not understood (value {}); known here are {}", place.where(), place.shown(), join(names));
}

std::string JsonPlace::text() const {
  require_kind(value_->is_string(), "text");
  return value_->get<std::string>();
}

bool JsonPlace::boolean() const {
  require_kind(value_->is_boolean(), "true or false");
  return value_->get<bool>();
}

int64_t JsonPlace::integer() const {
  require_kind(value_->is_number_integer(), "a whole number");
  require_kind(!value_->is_number_unsigned() || value_->get<uint64_t>() <= INT64_MAX, "a number below 2^63");
  return value_->get<int64_t>();
}

nlohmann::json parse_json(std::string_view text, const std::string& source) {
  // Printing a value recurses, so depth must have a bound before any message is made.
  constexpr int kMaxDepth = 64;
  std::vector<std::set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, nlohmann::json::parse_event_t event, const nlohmann::json& value) {
    using Event = nlohmann::json::parse_event_t;
    require(depth <= kMaxDepth, "{}: nested more than {} deep", source, kMaxDepth);
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key)
      require(keys.back().insert(value.get<std::string>()).second,
              "{}: the key '{}' is given twice in one object", source, value.get<std::string>());
    return true;
  };
  try {
    return nlohmann::json::parse(text.begin(), text.end(), check);
  } catch (const nlohmann::json::exception& error) {
    throw InputError(fmt::format("{}: not valid JSON: {}", source, error.what()));
  }
}

}  // namespace weft
