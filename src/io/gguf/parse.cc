// The header of a GGUF file, read once from front to back and checked before anything else looks at it.
#include <algorithm>
#include <bit>
#include <cstring>

#include "base/error.h"
#include "io/gguf/gguf.h"
#include "io/tokenizers/utf8.h"

namespace weft {
namespace {

constexpr uint32_t kMagic = 0x46554747;  // "GGUF"
constexpr uint64_t kMaxGgufHeaderBytes = 100'000'000;
constexpr uint32_t kMaxDimensions = 4;
constexpr uint64_t kMaxNameBytes = 65535;
constexpr int kMaxArrayDepth = 8;

static_assert(std::endian::native == std::endian::little, "GGUF files are read as they are");

class GgufParser {
 public:
  GgufParser(std::string_view file, const std::string& path) : file_(file), path_(path) {}

  GgufHeader parse() {
    GgufHeader header{.version = version(), .metadata = GgufMetadata(path_), .tensors = {}};
    const uint64_t tensors = number<uint64_t>("the number of tensors");
    const uint64_t values = number<uint64_t>("the number of values");
    // The least that a value (length, kind, one byte) and a tensor (length, count, one size, type, offset) take.
    require(values <= left() / 13, "{}: {} values cannot be in the {} bytes that follow", path_, values,
            left());
    require(tensors <= left() / 32, "{}: {} tensors cannot be in the {} bytes that follow", path_, tensors,
            left());
    for (uint64_t i = 0; i < values; ++i) read_value(header.metadata);
    header.alignment = alignment_of(header.metadata);
    for (uint64_t i = 0; i < tensors; ++i) read_tensor(header);
    place(header);
    return header;
  }

 private:
  uint64_t left() const { return std::min<uint64_t>(file_.size(), kMaxGgufHeaderBytes) - at_; }

  template <class T>
  T number(const std::string& what) {
    require(sizeof(T) <= left(), "{}: the header ends at byte {} within {}; is the file truncated?", path_,
            at_ + left(), what);
    T value;
    std::memcpy(&value, file_.data() + at_, sizeof(T));
    at_ += sizeof(T);
    return value;
  }

  std::string text(const std::string& what, uint64_t limit) {
    const auto length = number<uint64_t>(what);
    require(length <= limit && length <= left(), "{}: {}: a string of {} bytes, {} are left and {} allowed",
            path_, what, length, left(), limit);
    std::string value(file_.substr(at_, length));
    at_ += length;
    return value;
  }

  std::string name(const std::string& what) {
    auto value = text(what, kMaxNameBytes);
    require(!value.empty() && value.find('\0') == std::string::npos && is_utf8(value),
            "{}: {} is empty or no text in UTF-8", path_, what);
    return value;
  }

  uint32_t version() {
    require(file_.size() >= 24, "{}: {} bytes are too few for a GGUF file; is it truncated?", path_,
            file_.size());
    require(number<uint32_t>("the magic number") == kMagic, "{}: does not begin with 'GGUF'", path_);
    const auto version = number<uint32_t>("the version");
    require((version & 0xffff) != 0, "{}: is a big-endian GGUF file; only little-endian ones are read",
            path_);
    require(version == 2 || version == 3, "{}: GGUF version {}; versions 2 and 3 are read", path_, version);
    return version;
  }

  GgufKind kind(const std::string& key) {
    const auto id = number<uint32_t>(key);
    const auto kind = static_cast<GgufKind>(id);
    require(!gguf_kind_name(kind).empty(), "{}: '{}': unknown kind of value {}; kinds are 0 to 12", path_,
            key, id);
    return kind;
  }

  void read_value(GgufMetadata& metadata) {
    const auto key = name("the name of a value");
    const auto kind = this->kind(key);
    require(metadata.add(key, value(kind, key, 0)), "{}: '{}' is given twice", path_, key);
  }

  int64_t signed_of(GgufKind kind, const std::string& key) {
    switch (kind) {
      case GgufKind::u8:
        return number<uint8_t>(key);
      case GgufKind::i8:
        return number<int8_t>(key);
      case GgufKind::u16:
        return number<uint16_t>(key);
      case GgufKind::i16:
        return number<int16_t>(key);
      case GgufKind::u32:
        return number<uint32_t>(key);
      case GgufKind::i32:
        return number<int32_t>(key);
      case GgufKind::i64:
        return number<int64_t>(key);
      default:
        return boolean(key);
    }
  }

  bool boolean(const std::string& key) {
    const auto byte = number<uint8_t>(key);
    require(byte <= 1, "{}: '{}': a bool is 0 or 1, found {}", path_, key, byte);
    return byte == 1;
  }

  GgufValue value(GgufKind kind, const std::string& key, int depth) {
    GgufValue result{.kind = kind};
    switch (kind) {
      case GgufKind::boolean:
        result.value = boolean(key);
        break;
      case GgufKind::f32:
        result.value = static_cast<double>(number<float>(key));
        break;
      case GgufKind::f64:
        result.value = number<double>(key);
        break;
      case GgufKind::string:
        result.value = text(key, kMaxGgufHeaderBytes);
        break;
      case GgufKind::array:
        fill_array(result, key, depth);
        break;
      case GgufKind::u64:
        result.value = number<uint64_t>(key);
        break;
      case GgufKind::u8:
      case GgufKind::u16:
      case GgufKind::u32:
        result.value = static_cast<uint64_t>(signed_of(kind, key));
        break;
      default:
        result.value = signed_of(kind, key);
    }
    return result;
  }

  // Reads `count` items of at least `bytes` each.
  template <class T, class Read>
  std::vector<T> items(uint64_t count, uint64_t bytes, const std::string& key, Read read) {
    require(count <= left() / bytes, "{}: '{}': {} items cannot be in the {} bytes that follow", path_, key,
            count, left());
    std::vector<T> list;
    list.reserve(count);
    for (uint64_t i = 0; i < count; ++i) list.push_back(read());
    return list;
  }

  void fill_array(GgufValue& result, const std::string& key, int depth) {
    require(depth < kMaxArrayDepth, "{}: '{}': arrays are nested more than {} deep", path_, key,
            kMaxArrayDepth);
    result.element = kind(key);
    const auto count = number<uint64_t>(key);
    switch (result.element) {
      case GgufKind::f32:
        result.value = items<double>(count, 4, key, [&] { return static_cast<double>(number<float>(key)); });
        break;
      case GgufKind::f64:
        result.value = items<double>(count, 8, key, [&] { return number<double>(key); });
        break;
      case GgufKind::u64:
        result.value = items<uint64_t>(count, 8, key, [&] { return number<uint64_t>(key); });
        break;
      case GgufKind::string:
        result.value = items<std::string>(count, 8, key, [&] { return text(key, kMaxGgufHeaderBytes); });
        break;
      case GgufKind::array:
        result.value =
            items<GgufValue>(count, 12, key, [&] { return value(GgufKind::array, key, depth + 1); });
        break;
      default:
        result.value = items<int64_t>(count, width_of(result.element), key,
                                      [&] { return signed_of(result.element, key); });
    }
  }

  static uint64_t width_of(GgufKind kind) {
    switch (kind) {
      case GgufKind::u16:
      case GgufKind::i16:
        return 2;
      case GgufKind::u32:
      case GgufKind::i32:
        return 4;
      case GgufKind::i64:
        return 8;
      default:
        return 1;
    }
  }

  uint64_t alignment_of(const GgufMetadata& metadata) const {
    const auto alignment = metadata.integer("general.alignment", 32);
    require(alignment > 0 && alignment <= (1 << 20) && std::has_single_bit(static_cast<uint64_t>(alignment)),
            "{}: general.alignment: {} is no power of two up to 2^20", path_, alignment);
    return static_cast<uint64_t>(alignment);
  }

  void read_tensor(GgufHeader& header) {
    const auto name = this->name("the name of a tensor");
    const auto count = number<uint32_t>(name);
    require(count >= 1 && count <= kMaxDimensions, "{}: tensor '{}': {} dimensions; expected 1 to {}", path_,
            name, count, kMaxDimensions);
    GgufTensor tensor;
    uint64_t numbers = 1;
    for (uint32_t i = 0; i < count; ++i) {
      const auto size = number<uint64_t>(name);
      require(size > 0, "{}: tensor '{}': dimension {} is 0", path_, name, i);
      require(!__builtin_mul_overflow(numbers, size, &numbers) && numbers < (1ull << 56),
              "{}: tensor '{}': its dimensions are too large", path_, name);
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
    }
    const auto id = number<uint32_t>(name);
    const auto* info = ggml_type_info(id);
    require(info, "{}: tensor '{}': unknown type {}; weft reads {}", path_, name, id, readable_ggml_types());
    require(tensor.shape.back() % info->block == 0,
            "{}: tensor '{}': rows of {} are not whole blocks of {}, {} each", path_, name,
            tensor.shape.back(), info->name, info->block);
    tensor.type = info->type;
    tensor.bytes = numbers / static_cast<uint64_t>(info->block) * static_cast<uint64_t>(info->bytes);
    tensor.begin = number<uint64_t>(name);
    require(tensor.begin % header.alignment == 0,
            "{}: tensor '{}': offset {} is no multiple of the alignment {}", path_, name, tensor.begin,
            header.alignment);
    require(header.tensors.emplace(name, std::move(tensor)).second, "{}: tensor '{}' is in the header twice",
            path_, name);
  }

  // Offsets count from the first multiple of the alignment after the header.
  void place(GgufHeader& header) const {
    const uint64_t data = (at_ + header.alignment - 1) / header.alignment * header.alignment;
    std::vector<std::pair<const std::string*, const GgufTensor*>> order;
    for (auto& [name, tensor] : header.tensors) {
      const uint64_t room = file_.size() > data ? file_.size() - data : 0;
      require(
          tensor.begin <= room && tensor.bytes <= room - tensor.begin,
          "{}: tensor '{}': {} bytes at offset {} are outside the {} bytes of data; is the file truncated?",
          path_, name, tensor.bytes, tensor.begin, room);
      tensor.begin += data;
      order.emplace_back(&name, &tensor);
    }
    std::sort(order.begin(), order.end(),
              [](const auto& a, const auto& b) { return a.second->begin < b.second->begin; });
    for (size_t i = 1; i < order.size(); ++i)
      require(order[i - 1].second->begin + order[i - 1].second->bytes <= order[i].second->begin,
              "{}: tensor '{}' overlaps tensor '{}'", path_, *order[i].first, *order[i - 1].first);
  }

  std::string_view file_;
  const std::string& path_;
  uint64_t at_ = 0;
};

}  // namespace

GgufHeader parse_gguf(std::string_view file, const std::string& path) {
  return GgufParser(file, path).parse();
}

}  // namespace weft
