// A value inside a JSON file together with its path, so that every message can say where.
#pragma once

#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace weft {

constexpr int kMaxStepDepth = 8;  // of steps inside steps: a Sequence in a Sequence

class JsonPlace {
 public:
  // `source` names the file in messages.
  JsonPlace(const nlohmann::json& value, std::string source)
      : value_(&value), where_(std::move(source) + ": ") {}

  // "tokenizer.json: model.merges[3]"
  std::string where() const { return where_.ends_with(": ") ? where_ + "(top level)" : where_; }
  const nlohmann::json& json() const { return *value_; }
  bool is_null() const { return value_->is_null(); }
  // The value cut to 60 characters, for messages.
  std::string shown() const;

  bool has(const std::string& key) const;      // present and not null; *this must be an object
  JsonPlace at(const std::string& key) const;  // InputError when absent
  std::vector<JsonPlace> items() const;        // of a list
  std::vector<std::pair<std::string, JsonPlace>> members() const;
  // InputError for a member that is not one of these.
  void only(std::initializer_list<const char*> known) const;

  std::string text() const;
  bool boolean() const;
  int64_t integer() const;
  bool boolean_or(const std::string& key, bool otherwise) const {
    return has(key) ? at(key).boolean() : otherwise;
  }

 private:
  JsonPlace(const nlohmann::json* value, std::string where) : value_(value), where_(std::move(where)) {}
  void require_kind(bool ok, const char* expected) const;
  const nlohmann::json* value_;
  std::string where_;
};

// The JSON in `text`; InputError with the name `source` for text that is none, is nested
// more than 64 deep or has a key twice in one object.
nlohmann::json parse_json(std::string_view text, const std::string& source);

}  // namespace weft
