// Weights in the safetensors format: 8 bytes of header length, a JSON header (name -> dtype, shape, byte
// range), the bytes. Nothing in it is executed, and nothing in it is believed before it is checked.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/files.h"

namespace weft {

// What the header says about one tensor.
struct TensorEntry {
  at::ScalarType dtype;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // bytes from the start of the file
  uint64_t bytes = 0;
  size_t file = 0;  // which of SafeTensors::files()
};

// Reads one file or a sharded set. Opening maps the files and checks the headers in full; tensor bytes are
// touched only by view() and load(). InputError names file and tensor for anything that does not hold:
// truncated file, header longer than the file or 100 MB, broken JSON or UTF-8, a name given twice, ranges
// that overlap, leave a hole or leave the file, sizes that disagree with dtype * shape, unknown dtypes, a
// shard index that does not match its shards.
class SafeTensors {
 public:
  // `path`: a .safetensors file, a *.safetensors.index.json, or a folder that holds model.safetensors or
  // model.safetensors.index.json.
  explicit SafeTensors(const std::string& path);

  // All names, sorted.
  std::vector<std::string> names() const;
  bool contains(const std::string& name) const { return entries_.count(name) > 0; }
  // InputError names the nearest tensor when there is none of this name.
  const TensorEntry& entry(const std::string& name) const;
  const std::map<std::string, TensorEntry>& entries() const { return entries_; }

  // A CPU tensor over the mapped file, which it keeps alive; read-only (writing faults). Bytes that are not
  // aligned for their type are copied.
  at::Tensor view(const std::string& name) const;
  // A CPU tensor with memory of its own.
  at::Tensor load(const std::string& name) const;

  // The strings under "__metadata__"; of a sharded set those of all files, later files winning.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  const std::vector<std::string>& files() const { return paths_; }
  const std::string& path() const { return path_; }

 private:
  void add_file(const std::string& path);
  void add_index(const std::string& path);
  std::string path_;
  std::vector<std::string> paths_;
  std::vector<std::shared_ptr<MappedFile>> mapped_;
  std::map<std::string, TensorEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

using NamedTensors = std::vector<std::pair<std::string, at::Tensor>>;
using Metadata = std::map<std::string, std::string>;

// Writes tensors of any device, one after another, so that at most one copy on the CPU exists at a time.
// Order in the file: element size descending, then name, so that every tensor is aligned. The header is
// padded with spaces to a multiple of 8. InputError for a name given twice, Unsupported for a dtype the
// format lacks.
void write_safetensors(OutputFile& out, NamedTensors tensors, const Metadata& metadata = {});
// The same into an AtomicFile at `path`.
void write_safetensors(const std::string& path, NamedTensors tensors, const Metadata& metadata = {});

// Parses and checks the header in the first bytes of `file` (the whole content of a file named `path`); for
// tests and fuzzing of the reader without files.
struct SafeTensorsHeader {
  std::map<std::string, TensorEntry> entries;  // begin counts from the start of `file`
  Metadata metadata;
};
SafeTensorsHeader parse_safetensors_header(std::string_view file, const std::string& path);
// Tensor name -> name of the file beside the index that holds it, from the text of an index.
std::map<std::string, std::string> parse_safetensors_index(std::string_view text, const std::string& path);

}  // namespace weft
