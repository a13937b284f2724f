#include <ATen/Functions.h>

#include <set>

#include "base/error.h"
#include "io/gguf/gguf.h"

namespace weft {
namespace {

constexpr uint64_t kWrittenAlignment = 32;

class GgufHeaderWriter {
 public:
  explicit GgufHeaderWriter(OutputFile& out) : out_(out) {}

  template <class T>
  void number(T value) {
    out_.write(&value, sizeof(T));
  }
  void text(const std::string& value) {
    number<uint64_t>(value.size());
    out_.write(value);
  }
  void value(const GgufValue& value) {
    if (value.kind != GgufKind::array) {
      scalar(value.kind, value);
      return;
    }
    number(static_cast<uint32_t>(value.element));
    std::visit([&](const auto& list) { array(value.element, list); }, value.value);
  }

 private:
  template <class T>
  void integer(GgufKind kind, T value) {
    switch (kind) {
      case GgufKind::u8:
      case GgufKind::i8:
      case GgufKind::boolean:
        number(static_cast<uint8_t>(value));
        break;
      case GgufKind::u16:
      case GgufKind::i16:
        number(static_cast<uint16_t>(value));
        break;
      case GgufKind::u32:
      case GgufKind::i32:
        number(static_cast<uint32_t>(value));
        break;
      default:
        number(static_cast<uint64_t>(value));
    }
  }
  void real(GgufKind kind, double value) {
    if (kind == GgufKind::f32)
      number(static_cast<float>(value));
    else
      number(value);
  }
  void scalar(GgufKind kind, const GgufValue& value) {
    if (const auto* text_value = std::get_if<std::string>(&value.value))
      text(*text_value);
    else if (const auto* flag = std::get_if<bool>(&value.value))
      number(static_cast<uint8_t>(*flag));
    else if (const auto* real_value = std::get_if<double>(&value.value))
      real(kind, *real_value);
    else if (const auto* positive = std::get_if<uint64_t>(&value.value))
      integer(kind, *positive);
    else
      integer(kind, std::get<int64_t>(value.value));
  }
  void array(GgufKind kind, const std::vector<int64_t>& list) {
    number<uint64_t>(list.size());
    for (const auto item : list) integer(kind, item);
  }
  void array(GgufKind kind, const std::vector<uint64_t>& list) {
    number<uint64_t>(list.size());
    for (const auto item : list) integer(kind, item);
  }
  void array(GgufKind kind, const std::vector<double>& list) {
    number<uint64_t>(list.size());
    for (const auto item : list) real(kind, item);
  }
  void array(GgufKind, const std::vector<std::string>& list) {
    number<uint64_t>(list.size());
    for (const auto& item : list) text(item);
  }
  void array(GgufKind, const std::vector<GgufValue>& list) {
    number<uint64_t>(list.size());
    for (const auto& item : list) value(item);
  }
  template <class Scalar>
  void array(GgufKind, const Scalar&) {
    invariant(false, "a value said to be an array is none");
  }

  OutputFile& out_;
};

uint64_t bytes_of(const GgufOutput& tensor) {
  const auto& info = ggml_type_info(tensor.type);
  uint64_t numbers = 1;
  for (const auto size : tensor.shape) numbers *= static_cast<uint64_t>(size);
  return numbers / static_cast<uint64_t>(info.block) * static_cast<uint64_t>(info.bytes);
}

uint64_t aligned(uint64_t bytes) {
  return (bytes + kWrittenAlignment - 1) / kWrittenAlignment * kWrittenAlignment;
}

void check_outputs(const std::vector<GgufOutput>& tensors, const std::string& path) {
  std::set<std::string> names;
  for (const auto& tensor : tensors) {
    const auto& info = ggml_type_info(tensor.type);
    require(names.insert(tensor.name).second, "{}: tensor '{}' is given twice", path, tensor.name);
    supported(info.plain() || tensor.type == GgmlType::Q8_0,
              "{}: tensor '{}': {} is not written; plain types and Q8_0 are", path, tensor.name, info.name);
    require(!tensor.shape.empty() && tensor.shape.size() <= 4,
            "{}: tensor '{}' has {} dimensions; GGUF has 1 to 4", path, tensor.name, tensor.shape.size());
    require(tensor.shape.back() % info.block == 0, "{}: tensor '{}': rows of {} are not whole blocks of {}",
            path, tensor.name, tensor.shape.back(), info.name);
  }
}

void write_data(OutputFile& out, const GgufOutput& tensor) {
  const auto& info = ggml_type_info(tensor.type);
  const auto made = tensor.make();
  require(made.sizes() == at::IntArrayRef(tensor.shape), "{}: tensor '{}' is [{}], announced as [{}]",
          out.path(), tensor.name, fmt::join(made.sizes(), ", "), fmt::join(tensor.shape, ", "));
  const auto ready = made.detach().cpu().to(info.dtype).contiguous();
  if (info.plain()) {
    out.write(ready.const_data_ptr(), ready.nbytes());
  } else {
    std::string blocks(bytes_of(tensor), '\0');
    quantize_q8_0(ready.const_data_ptr<float>(), ready.numel(), reinterpret_cast<std::byte*>(blocks.data()));
    out.write(blocks);
  }
}

void pad(OutputFile& out) { out.write(std::string(aligned(out.size()) - out.size(), '\0')); }

}  // namespace

void write_gguf(OutputFile& out, const GgufMetadata& metadata, const std::vector<GgufOutput>& tensors) {
  check_outputs(tensors, out.path());
  GgufHeaderWriter header(out);
  out.write("GGUF");
  header.number<uint32_t>(3);
  header.number<uint64_t>(tensors.size());
  header.number<uint64_t>(metadata.items().size());
  for (const auto& [key, value] : metadata.items()) {
    header.text(key);
    header.number(static_cast<uint32_t>(value.kind));
    header.value(value);
  }
  uint64_t offset = 0;
  for (const auto& tensor : tensors) {
    header.text(tensor.name);
    header.number(static_cast<uint32_t>(tensor.shape.size()));
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend(); ++size)
      header.number(static_cast<uint64_t>(*size));
    header.number(static_cast<uint32_t>(tensor.type));
    header.number(offset);
    offset += aligned(bytes_of(tensor));
  }
  pad(out);
  for (const auto& tensor : tensors) {
    write_data(out, tensor);
    pad(out);
  }
}

void write_gguf(const std::string& path, const GgufMetadata& metadata,
                const std::vector<GgufOutput>& tensors) {
  write_atomically(path, [&](OutputFile& out) { write_gguf(out, metadata, tensors); });
}

}  // namespace weft
