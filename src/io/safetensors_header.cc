// The JSON header of a safetensors file, read as a stream of events so that a name given twice is seen, and
// checked against the file before anything else looks at it.
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "io/safetensors.h"
#include "io/safetensors_dtypes.h"

namespace weft {

namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;

// One tensor as the header states it.
struct Stated {
  std::string name, dtype;
  std::vector<uint64_t> shape, offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

// Accepts exactly the grammar {"name": {"dtype": "..", "shape": [n..], "data_offsets": [n, n]},
// "__metadata__":
// {"..": ".."}}; anything else throws at once.
class HeaderEvents final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderEvents(const std::string& path) : path_(path) {}

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("true or false"); }
  bool number_integer(number_integer_t value) override {
    return unexpected(fmt::format("the number {}", value));
  }
  bool number_float(number_float_t, const string_t& text) override {
    return unexpected("the number " + text);
  }
  bool binary(binary_t&) override { return unexpected("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (!in_array_) return unexpected(fmt::format("the number {}", value));
    (key_ == "shape" ? tensor_.shape : tensor_.offsets).push_back(value);
    return true;
  }

  bool string(string_t& text) override {
    if (depth_ == 2 && !in_array_ && in_metadata_) {
      require(metadata.emplace(key_, text).second, "{}: __metadata__ has '{}' twice", path_, key_);
    } else if (depth_ == 2 && !in_array_ && key_ == "dtype") {
      tensor_.dtype = text;
    } else {
      return unexpected("the text '" + text + "'");
    }
    return true;
  }

  bool start_object(std::size_t) override {
    if (in_array_ || depth_ >= 2) return unexpected("an object");
    ++depth_;
    in_metadata_ = depth_ == 2 && tensor_.name == "__metadata__";
    return true;
  }

  bool key(string_t& text) override {
    if (depth_ == 1) {
      require(names_.insert(text).second, "{}: tensor '{}' is in the header twice", path_, text);
      tensor_ = Stated{};
      tensor_.name = text;
    } else if (!in_metadata_) {
      note_member(text);
    }
    key_ = text;
    return true;
  }

  bool end_object() override {
    if (depth_ == 2 && !in_metadata_) {
      require(tensor_.has_dtype && tensor_.has_shape && tensor_.has_offsets,
              "{}: tensor '{}': dtype, shape and data_offsets are needed, {} is missing", path_, tensor_.name,
              !tensor_.has_dtype   ? "dtype"
              : !tensor_.has_shape ? "shape"
                                   : "data_offsets");
      tensors.push_back(tensor_);
    }
    --depth_;
    in_metadata_ = false;
    key_.clear();
    return true;
  }

  bool start_array(std::size_t) override {
    if (in_array_ || depth_ != 2 || in_metadata_ || (key_ != "shape" && key_ != "data_offsets"))
      return unexpected("a list");
    in_array_ = true;
    return true;
  }

  bool end_array() override {
    in_array_ = false;
    return true;
  }

  bool parse_error(std::size_t at, const std::string&, const nlohmann::detail::exception& error) override {
    throw InputError(
        fmt::format("{}: the header is not valid JSON at byte {}: {}", path_, at + 8, error.what()));
  }

  std::vector<Stated> tensors;
  Metadata metadata;

 private:
  void note_member(const std::string& name) {
    bool* seen = name == "dtype"          ? &tensor_.has_dtype
                 : name == "shape"        ? &tensor_.has_shape
                 : name == "data_offsets" ? &tensor_.has_offsets
                                          : nullptr;
    require(seen, "{}: tensor '{}': unknown member '{}'; known are dtype, shape, data_offsets", path_,
            tensor_.name, name);
    require(!*seen, "{}: tensor '{}': '{}' is given twice", path_, tensor_.name, name);
    *seen = true;
  }

  bool unexpected(const std::string& what) const {
    throw InputError(depth_ == 0 ? fmt::format("{}: the header must be a JSON object, found {}", path_, what)
                                 : fmt::format("{}: '{}'{}: {} cannot stand here", path_, tensor_.name,
                                               depth_ == 2 ? ": " + key_ : "", what));
  }

  const std::string& path_;
  int depth_ = 0;
  bool in_array_ = false, in_metadata_ = false;
  std::string key_;
  Stated tensor_;
  std::set<std::string> names_;
};

TensorEntry checked_entry(const Stated& stated, uint64_t data_begin, uint64_t data_bytes,
                          const std::string& path) {
  const auto dtype = safetensors_dtype(stated.dtype);
  require(dtype.has_value(), "{}: tensor '{}': unknown dtype '{}'; known are {}", path, stated.name,
          stated.dtype, safetensors_dtype_names());
  require(stated.offsets.size() == 2, "{}: tensor '{}': data_offsets must be [begin, end], found {} numbers",
          path, stated.name, stated.offsets.size());
  const uint64_t begin = stated.offsets[0], end = stated.offsets[1];
  require(begin <= end && end <= data_bytes,
          "{}: tensor '{}': bytes {} to {} are outside the {} bytes of data", path, stated.name, begin, end,
          data_bytes);
  TensorEntry entry{
      .dtype = *dtype, .shape = {}, .begin = data_begin + begin, .bytes = end - begin, .file = 0};
  uint64_t bytes = c10::elementSize(*dtype);
  uint64_t nonzero = bytes;  // sizes other than 0, so that [2^62, 0] cannot hide an overflow in strides
  for (const uint64_t size : stated.shape) {
    const bool fits = !__builtin_mul_overflow(bytes, size, &bytes) &&
                      !__builtin_mul_overflow(nonzero, std::max<uint64_t>(size, 1), &nonzero) &&
                      nonzero < (1ull << 62);
    require(fits, "{}: tensor '{}': shape [{}] is too large", path, stated.name,
            fmt::join(stated.shape, ", "));
    entry.shape.push_back(static_cast<int64_t>(size));
  }
  require(bytes == entry.bytes, "{}: tensor '{}': {} [{}] needs {} bytes, data_offsets give {}", path,
          stated.name, stated.dtype, fmt::join(stated.shape, ", "), bytes, entry.bytes);
  return entry;
}

// The ranges, laid side by side, must be the data and nothing else.
void check_cover(const std::map<std::string, TensorEntry>& entries, uint64_t begin, uint64_t end,
                 const std::string& path) {
  std::vector<std::pair<const std::string*, const TensorEntry*>> order;
  for (const auto& [name, entry] : entries) order.emplace_back(&name, &entry);
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.second->begin, a.second->bytes) < std::pair(b.second->begin, b.second->bytes);
  });
  uint64_t covered = begin;
  std::string previous = "the header";
  for (const auto& [name, entry] : order) {
    require(entry->begin >= covered, "{}: tensor '{}' overlaps tensor '{}'", path, *name, previous);
    require(entry->begin == covered, "{}: tensor '{}': a hole of {} bytes lies before it, after {}", path,
            *name, entry->begin - covered, previous);
    covered = entry->begin + entry->bytes;
    previous = *name;
  }
  require(covered == end, "{}: {} bytes after the last tensor belong to none", path, end - covered);
}

}  // namespace

SafeTensorsHeader parse_safetensors_header(std::string_view file, const std::string& path) {
  require(file.size() >= 8, "{}: {} bytes are too few for a safetensors file; is it truncated?", path,
          file.size());
  uint64_t length;
  std::memcpy(&length, file.data(), 8);
  require(length <= kMaxHeaderBytes,
          "{}: the header would have {} bytes, at most {} are allowed; is it a safetensors file?", path,
          length, kMaxHeaderBytes);
  require(length <= file.size() - 8,
          "{}: the header needs {} bytes but the file ends after {}; is it truncated?", path, length,
          file.size() - 8);
  const std::string_view json = file.substr(8, length);
  require(!json.empty() && json.front() == '{',
          "{}: the header does not begin with '{{'; is it a safetensors file?", path);
  HeaderEvents events(path);
  nlohmann::json::sax_parse(json.begin(), json.end(), &events);

  SafeTensorsHeader header;
  for (const Stated& stated : events.tensors)
    header.entries.emplace(stated.name, checked_entry(stated, 8 + length, file.size() - 8 - length, path));
  check_cover(header.entries, 8 + length, file.size(), path);
  header.metadata = std::move(events.metadata);
  return header;
}

}  // namespace weft
