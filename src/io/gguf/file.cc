#include <ATen/Functions.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/error.h"
#include "base/text.h"
#include "io/gguf/gguf.h"

namespace weft {
namespace {

// MODEL-00001-of-00003.gguf -> MODEL-00002-of-00003.gguf
std::string part_path(const std::string& path, size_t part, int64_t parts) {
  const auto ending = [&](size_t number) { return fmt::format("-{:05}-of-{:05}.gguf", number + 1, parts); };
  require(path.ends_with(ending(0)), "{}: is one of {} parts; open the first, which is called NAME{}", path,
          parts, ending(0));
  return path.substr(0, path.size() - ending(0).size()) + ending(part);
}

}  // namespace

bool is_gguf_file(const std::string& path) {
  std::error_code none;
  if (!std::filesystem::is_regular_file(path, none)) return false;
  char magic[4] = {};
  return std::ifstream(path, std::ios::binary).read(magic, 4) && std::memcmp(magic, "GGUF", 4) == 0;
}

GgufFile::GgufFile(const std::string& path) : path_(path) {
  mapped_.push_back(std::make_shared<MappedFile>(path));
  header_ = parse_gguf(mapped_[0]->text(), path);
  const auto parts = metadata().integer("split.count", 1);
  require(parts >= 0 && parts <= 9999, "{}: split.count: {} parts", path, parts);
  for (int64_t part = 1; part < parts; ++part)
    add_part(part_path(path, static_cast<size_t>(part), parts), static_cast<size_t>(part), parts);
}

void GgufFile::add_part(const std::string& path, size_t part, int64_t parts) {
  auto mapped = std::make_shared<MappedFile>(path);
  auto header = parse_gguf(mapped->text(), path);
  require(header.metadata.integer("split.count") == parts &&
              header.metadata.integer("split.no") == static_cast<int64_t>(part),
          "{}: is no part {} of {}", path, part + 1, parts);
  for (auto& [name, tensor] : header.tensors) {
    tensor.file = mapped_.size();
    require(header_.tensors.emplace(name, std::move(tensor)).second, "{}: tensor '{}' is in another part too",
            path, name);
  }
  mapped_.push_back(std::move(mapped));
}

const GgufTensor& GgufFile::tensor(const std::string& name) const {
  const auto found = tensors().find(name);
  if (found != tensors().end()) return found->second;
  std::vector<std::string> names;
  for (const auto& [other, unused] : tensors()) names.push_back(other);
  const auto nearest = nearest_word(name, names);
  throw InputError(fmt::format("{}: there is no tensor '{}' among {}{}", path_, name, names.size(),
                               nearest.empty() ? "" : "; nearest is '" + nearest + "'"));
}

at::Tensor GgufFile::view(const std::string& name) const {
  const auto& tensor = this->tensor(name);
  const auto& info = ggml_type_info(tensor.type);
  supported(info.plain() || info.decode, "{}: tensor '{}' is {}; weft reads {}", path_, name, info.name,
            readable_ggml_types());
  const auto& mapped = mapped_[tensor.file];
  const std::byte* data = mapped->data() + tensor.begin;
  const auto options = at::TensorOptions().dtype(info.dtype);
  if (info.plain() && reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(info.bytes) == 0)
    return at::from_blob(
        const_cast<std::byte*>(data), tensor.shape, [mapped](void*) {}, options);
  auto result = at::empty(tensor.shape, options);
  if (info.plain())
    std::memcpy(result.mutable_data_ptr(), data, tensor.bytes);
  else
    dequantize(info, data, result.numel() / info.block, result.mutable_data_ptr<float>());
  return result;
}

}  // namespace weft
