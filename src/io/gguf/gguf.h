// GGUF, the file format of llama.cpp: a header with named values and tensor descriptions, then the tensors' bytes.
// Nothing in it is executed, and nothing in it is believed before it is checked.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/files.h"
#include "io/gguf/metadata.h"
#include "io/gguf/tensor_types.h"

namespace weft {

// What the header says about one tensor.
struct GgufTensor {
  GgmlType type = GgmlType::F32;
  std::vector<int64_t> shape;  // outermost first, as torch counts; the file has it the other way round
  uint64_t begin = 0;          // bytes from the start of the file
  uint64_t bytes = 0;
  size_t file = 0;  // of a model split over several
};

struct GgufHeader {
  uint32_t version = 3;
  uint64_t alignment = 32;
  GgufMetadata metadata;
  std::map<std::string, GgufTensor> tensors;
};

// Parses and checks the header in the first bytes of `file` (the whole content of a file named `path`). InputError
// names file and key or tensor for anything that does not hold: another magic number, version 1 or unknown, big-endian
// files, a header that ends early or is over 100 MB, counts and lengths beyond the file, keys or tensors given twice,
// names that are no UTF-8, unknown kinds and types, arrays nested over 8 deep, dimensions that are 0, too many or too large, rows that are
// no whole blocks, offsets that are not aligned, overlap or leave the file. Memory stays within a small multiple of the
// header's size.
GgufHeader parse_gguf(std::string_view file, const std::string& path);

// An open file, mapped; with split.count above 1 (MODEL-00001-of-00003.gguf) all its parts.
class GgufFile {
 public:
  explicit GgufFile(const std::string& path);

  const std::string& path() const { return path_; }
  const GgufMetadata& metadata() const { return header_.metadata; }
  const std::map<std::string, GgufTensor>& tensors() const { return header_.tensors; }
  bool contains(const std::string& name) const { return header_.tensors.count(name) > 0; }
  // InputError names the nearest tensor when there is none of this name.
  const GgufTensor& tensor(const std::string& name) const;

  // The numbers as a CPU tensor: over the mapped file for plain types (read-only: writing faults), with memory of its
  // own, in fp32, for blocks. Unsupported for types of tensor_types.h that are not read.
  at::Tensor view(const std::string& name) const;

 private:
  void add_part(const std::string& path, size_t part, int64_t parts);
  std::string path_;
  GgufHeader header_;
  std::vector<std::shared_ptr<MappedFile>> mapped_;
};

// Whether `path` is a file that begins as GGUF files do.
bool is_gguf_file(const std::string& path);

// A tensor to be written: `make` is asked for it when its turn comes, so that one copy exists at a time.
struct GgufOutput {
  std::string name;
  std::vector<int64_t> shape;
  GgmlType type = GgmlType::F32;  // plain, or Q8_0 for rows of a multiple of 32 numbers
  std::function<at::Tensor()> make;
};

// Writes version 3 with alignment 32 in the order given. Numbers are converted to `type`, floats by rounding to nearest
// even. InputError for a name given twice or a shape that `make` does not keep, Unsupported for other types.
void write_gguf(OutputFile& out, const GgufMetadata& metadata, const std::vector<GgufOutput>& tensors);
// The same into an AtomicFile at `path`.
void write_gguf(const std::string& path, const GgufMetadata& metadata,
                const std::vector<GgufOutput>& tensors);

}  // namespace weft
