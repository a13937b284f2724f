// What a GGUF file says about its model: named values of the twelve scalar types of the format and arrays of them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace weft {

// The numbers are those of the file format.
enum class GgufKind : uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};
// "u8", ...; "" for numbers that are no kind.
std::string_view gguf_kind_name(GgufKind kind);

struct GgufValue {
  GgufKind kind = GgufKind::u32;
  GgufKind element = GgufKind::u32;  // of an array
  // Scalars: bool, int64_t (i*), uint64_t (u*), double (f*), string. Arrays: integers other than u64, and bools as 0
  // and 1, in int64_t.
  std::variant<bool, int64_t, uint64_t, double, std::string, std::vector<int64_t>, std::vector<uint64_t>,
               std::vector<double>, std::vector<std::string>, std::vector<GgufValue>>
      value = uint64_t{0};
};

// The values by key, in the order of the file. A key that begins with a dot stands below the architecture:
// ".block_count" of a llama is "llama.block_count".
class GgufMetadata {
 public:
  // `source` names the file in messages.
  explicit GgufMetadata(std::string source = "GGUF") : source_(std::move(source)) {}

  // False when there is a value of this name already.
  bool add(const std::string& key, GgufValue value);
  // Replaces a value of this name.
  void set(const std::string& key, GgufValue value);
  void set_u32(const std::string& key, int64_t value);
  void set_f32(const std::string& key, double value);
  void set_flag(const std::string& key, bool value);
  void set_text(const std::string& key, std::string value);
  void set_i32s(const std::string& key, std::vector<int64_t> values);
  void set_f32s(const std::string& key, std::vector<double> values);
  void set_texts(const std::string& key, std::vector<std::string> values);

  const std::string& source() const { return source_; }
  // general.architecture, "" when it is not said.
  std::string architecture() const;
  bool has(std::string_view key) const { return find(key) != nullptr; }
  const GgufValue* find(std::string_view key) const;  // null when absent
  const std::vector<std::pair<std::string, GgufValue>>& items() const { return items_; }

  // Each: InputError, naming file and key, when the value has another type; without `otherwise` also when it is absent.
  int64_t integer(std::string_view key) const;
  int64_t integer(std::string_view key, int64_t otherwise) const;
  // A 32-bit float is given as the double with the same shortest decimal: 1e-5, not 9.99999974e-06.
  double number(std::string_view key) const;
  double number(std::string_view key, double otherwise) const;
  bool flag(std::string_view key, bool otherwise) const;
  std::string text(std::string_view key) const;
  std::string text(std::string_view key, const std::string& otherwise) const;
  // Empty when absent.
  std::vector<int64_t> integers(std::string_view key) const;
  std::vector<double> numbers(std::string_view key) const;
  std::vector<std::string> texts(std::string_view key) const;
  // An integer for each of `count` layers, from an array or one value for all.
  std::vector<int64_t> per_layer(std::string_view key, int64_t count) const;
  // "FILE: llama.block_count", for messages.
  std::string where(std::string_view key) const;

 private:
  std::string full_key(std::string_view key) const;
  const GgufValue& need(std::string_view key) const;
  std::string source_;
  std::vector<std::pair<std::string, GgufValue>> items_;
  std::map<std::string, size_t, std::less<>> index_;
};

// The double with the shortest decimal of this 32-bit float.
double decimal_double(float value);

}  // namespace weft
