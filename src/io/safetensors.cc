#include "io/safetensors.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "base/error.h"
#include "base/text.h"
#include "io/json_place.h"
#include "io/safetensors_dtypes.h"

namespace fs = std::filesystem;

namespace weft {

namespace {

constexpr std::pair<std::string_view, at::ScalarType> kDtypes[] = {
    {"F64", at::kDouble},
    {"F32", at::kFloat},
    {"F16", at::kHalf},
    {"BF16", at::kBFloat16},
    {"I64", at::kLong},
    {"I32", at::kInt},
    {"I16", at::kShort},
    {"I8", at::kChar},
    {"U8", at::kByte},
    {"BOOL", at::kBool},
    {"U16", at::kUInt16},
    {"U32", at::kUInt32},
    {"U64", at::kUInt64},
    {"F8_E4M3", at::kFloat8_e4m3fn},
    {"F8_E5M2", at::kFloat8_e5m2},
    {"C64", at::kComplexFloat},
};

void check_bools(const std::byte* data, uint64_t bytes, const std::string& path, const std::string& name) {
  for (uint64_t i = 0; i < bytes; ++i)
    require(static_cast<unsigned char>(data[i]) <= 1,
            "{}: tensor '{}': BOOL element {} is {}, expected 0 or 1", path, name, i,
            static_cast<int>(data[i]));
}

}  // namespace

std::optional<at::ScalarType> safetensors_dtype(std::string_view name) {
  for (const auto& [known, dtype] : kDtypes)
    if (known == name) return dtype;
  return std::nullopt;
}

std::string_view safetensors_dtype_name(at::ScalarType dtype) {
  for (const auto& [name, known] : kDtypes)
    if (known == dtype) return name;
  return "";
}

std::string safetensors_dtype_names() {
  std::vector<std::string> names;
  for (const auto& [name, dtype] : kDtypes) names.emplace_back(name);
  return join(names);
}

SafeTensors::SafeTensors(const std::string& path) : path_(path) {
  if (!fs::is_directory(path)) {
    path.ends_with(".json") ? add_index(path) : add_file(path);
    return;
  }
  const std::string whole = path + "/model.safetensors", index = path + "/model.safetensors.index.json";
  require(fs::exists(whole) || fs::exists(index),
          "{}: holds neither model.safetensors nor model.safetensors.index.json", path);
  fs::exists(index) ? add_index(index) : add_file(whole);
}

void SafeTensors::add_file(const std::string& path) {
  auto mapped = std::make_shared<MappedFile>(path);
  SafeTensorsHeader header = parse_safetensors_header(mapped->text(), path);
  for (auto& [name, entry] : header.entries) {
    entry.file = paths_.size();
    const auto [at, fresh] = entries_.emplace(name, std::move(entry));
    if (!fresh)  // a fresh entry's file is not in paths_ yet
      throw InputError(fmt::format("{}: tensor '{}' is in {} too", path, name, paths_[at->second.file]));
  }
  for (auto& [key, value] : header.metadata) metadata_[key] = std::move(value);
  paths_.push_back(path);
  mapped_.push_back(std::move(mapped));
}

std::map<std::string, std::string> parse_safetensors_index(std::string_view text, const std::string& path) {
  const auto json = parse_json(text, path);
  std::map<std::string, std::string> shards;
  for (const auto& [name, shard] : JsonPlace(json, path).at("weight_map").members()) {
    const auto file = shard.text();
    require(!file.empty() && file != "." && file != ".." && file.find('/') == std::string::npos &&
                file.find('\0') == std::string::npos,
            "{}: '{}' is not the name of a file beside the index", shard.where(), file);
    shards.emplace(name, file);
  }
  return shards;
}

void SafeTensors::add_index(const std::string& path) {
  const auto wanted = parse_safetensors_index(read_text(path), path);
  std::vector<std::string> shards;
  for (const auto& [name, file] : wanted) shards.push_back(file);
  std::sort(shards.begin(), shards.end());
  shards.erase(std::unique(shards.begin(), shards.end()), shards.end());
  for (const auto& shard : shards) add_file((fs::path(path).parent_path() / shard).string());
  for (const auto& [name, shard] : wanted) {
    const auto found = entries_.find(name);
    require(found != entries_.end() && fs::path(paths_[found->second.file]).filename() == shard,
            "{}: weight_map: tensor '{}' is not in {}", path, name, shard);
  }
  for (const auto& [name, entry] : entries_)
    require(wanted.count(name) > 0, "{}: tensor '{}' of {} is not in weight_map", path, name,
            paths_[entry.file]);
}

std::vector<std::string> SafeTensors::names() const {
  std::vector<std::string> names;
  for (const auto& [name, entry] : entries_) names.push_back(name);
  return names;
}

const TensorEntry& SafeTensors::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found != entries_.end()) return found->second;
  const std::string nearest = nearest_word(name, names());
  throw InputError(fmt::format("{}: there is no tensor '{}' among {}{}", path_, name, entries_.size(),
                               nearest.empty() ? "" : "; nearest is '" + nearest + "'"));
}

at::Tensor SafeTensors::view(const std::string& name) const {
  const TensorEntry& entry = this->entry(name);
  const auto& mapped = mapped_[entry.file];
  const std::byte* data = mapped->data() + entry.begin;
  if (entry.bytes == 0 || reinterpret_cast<uintptr_t>(data) % c10::elementSize(entry.dtype) != 0)
    return load(name);
  if (entry.dtype == at::kBool) check_bools(data, entry.bytes, paths_[entry.file], name);
  return at::from_blob(
      const_cast<std::byte*>(data), entry.shape, [mapped](void*) {}, at::TensorOptions().dtype(entry.dtype));
}

at::Tensor SafeTensors::load(const std::string& name) const {
  const TensorEntry& entry = this->entry(name);
  const std::byte* data = mapped_[entry.file]->data() + entry.begin;
  if (entry.dtype == at::kBool) check_bools(data, entry.bytes, paths_[entry.file], name);
  at::Tensor tensor = at::empty(entry.shape, at::TensorOptions().dtype(entry.dtype));
  if (entry.bytes > 0) std::memcpy(tensor.data_ptr(), data, entry.bytes);
  return tensor;
}

namespace {

void sort_for_file(NamedTensors& tensors, const std::string& path) {
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    const auto size_a = a.second.element_size(), size_b = b.second.element_size();
    return size_a != size_b ? size_a > size_b : a.first < b.first;
  });
  std::map<std::string_view, int> count;
  for (const auto& [name, tensor] : tensors) {
    require(name != "__metadata__", "{}: '__metadata__' cannot be the name of a tensor", path);
    require(++count[name] == 1, "{}: tensor '{}' is given twice", path, name);
  }
}

std::string header_json(const NamedTensors& tensors, const Metadata& metadata, const std::string& path) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const auto& [name, tensor] : tensors) {
    const auto dtype = safetensors_dtype_name(tensor.scalar_type());
    supported(!dtype.empty(), "{}: tensor '{}' is {}; safetensors files hold {}", path, name,
              c10::toString(tensor.scalar_type()), safetensors_dtype_names());
    const uint64_t end = offset + static_cast<uint64_t>(tensor.nbytes());
    header[name] = {{"dtype", dtype}, {"shape", tensor.sizes().vec()}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  try {
    return header.dump();
  } catch (const nlohmann::json::exception& error) {
    throw InputError(fmt::format("{}: a name or metadata is not UTF-8: {}", path, error.what()));
  }
}

}  // namespace

void write_safetensors(OutputFile& out, NamedTensors tensors, const Metadata& metadata) {
  for (const auto& [name, tensor] : tensors)
    require(tensor.defined(), "{}: tensor '{}' is undefined", out.path(), name);
  sort_for_file(tensors, out.path());
  std::string header = header_json(tensors, metadata, out.path());
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const uint64_t length = header.size();
  out.write(&length, 8);
  out.write(header);
  for (auto& [name, tensor] : tensors) {
    const at::Tensor ready = tensor.detach().cpu().contiguous();
    out.write(ready.data_ptr(), ready.nbytes());
    tensor.reset();
  }
}

void write_safetensors(const std::string& path, NamedTensors tensors, const Metadata& metadata) {
  write_atomically(path, [&](OutputFile& out) { write_safetensors(out, std::move(tensors), metadata); });
}

}  // namespace weft
