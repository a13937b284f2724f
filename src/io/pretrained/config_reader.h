// Reads the config.json of a pretrained model and remembers what was read, so that no key is passed over in silence.
#pragma once

#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/json_place.h"

namespace weft {

// The spellings of one key: "num_key_value_heads", or {"partial_rotary_factor", "rotary_pct"}. The first that the
// config has counts; a key whose value is null counts as absent.
struct ConfigKey {
  ConfigKey(const char* name) : names{name} {}
  ConfigKey(const std::string& name) : names{name} {}
  ConfigKey(std::initializer_list<const char*> spellings) : names(spellings.begin(), spellings.end()) {}
  std::vector<std::string> names;
};

// One object of a config. Every read without `otherwise` requires the key. InputError names file, key and value for
// a missing key or one of another type. Copies share what was read.
class ConfigReader {
 public:
  // `object` and its document must outlive the reader.
  explicit ConfigReader(const JsonPlace& object);

  bool has(const ConfigKey& key) const;  // does not count as read
  // Whether the key is there and null: off, where an absent key means a default.
  bool is_null(const std::string& key) const;
  bool is_text(const ConfigKey& key) const;  // has the key, with a text as value; does not count as read
  int64_t integer(const ConfigKey& key) const;
  int64_t integer(const ConfigKey& key, int64_t otherwise) const;
  // Also {"__float__": "Infinity"}, as transformers 5 writes numbers that JSON has no word for.
  double number(const ConfigKey& key) const;
  double number(const ConfigKey& key, double otherwise) const;
  bool flag(const ConfigKey& key, bool otherwise) const;
  std::string text(const ConfigKey& key) const;
  std::string text(const ConfigKey& key, const std::string& otherwise) const;
  std::vector<int64_t> integers(
      const ConfigKey& key) const;  // {} when absent; a number alone is a list of one
  std::vector<double> numbers(const ConfigKey& key) const;
  std::vector<std::string> texts(const ConfigKey& key) const;
  std::optional<ConfigReader> child(const ConfigKey& key) const;  // an object

  // Keys that may be there and do not matter.
  void ignore(std::initializer_list<const char*> keys) const;
  // Takes back that these were read, for a look at them before the architecture reads them itself.
  void forget(std::initializer_list<const char*> keys) const;
  // For values that are understood but not provided: Unsupported "FILE: KEY: VALUE is not supported; EXPECTED".
  [[noreturn]] void unsupported(const ConfigKey& key, const std::string& expected) const;
  // `unsupported` unless ok.
  void need(bool ok, const ConfigKey& key, const std::string& expected) const {
    if (!ok) unsupported(key, expected);
  }
  // "config.json: rope_parameters.rope_type", for messages of the caller.
  std::string where(const ConfigKey& key) const;

  // InputError for the first key, here or in children that were opened, that was neither read nor ignored and is not
  // null.
  void finish() const;

 private:
  struct Node;
  explicit ConfigReader(std::shared_ptr<Node> node);
  const JsonPlace* take(const ConfigKey& key) const;  // null when absent
  const JsonPlace& need_key(const ConfigKey& key) const;
  std::shared_ptr<Node> node_;
};

}  // namespace weft
