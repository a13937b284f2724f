// What GGUF files call things: for each general.architecture which config.json its metadata amounts to, and where the
// tensors of the Hugging Face checkpoint stand in the file. With both, the architecture files in io/pretrained serve GGUF
// files too. One small file each in architectures/; all of it can be turned round to write such a file.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/gguf/gguf.h"
#include "io/pretrained/blueprint.h"
#include "io/pretrained/config_reader.h"

namespace weft {

// One tensor of the Hugging Face checkpoint. Its rows (as in Blueprint: the last dimension is a row) are the rows of
// pieces of the GGUF file's tensors.
struct GgufLink {
  // What the GGUF file holds instead of a number x: x, offset + x, -exp(x). The last cannot be undone exactly.
  enum class Value { same, plus, negative_exp };
  std::string tensor;
  std::vector<Piece> pieces;        // Piece::shape {}: the GGUF tensor has the sizes of the whole
  std::vector<int64_t> shape = {};  // in the checkpoint; {}: that of the only piece
  Value value = Value::same;
  double offset = 1;  // of Value::plus
  std::vector<int64_t> columns =
      {};  // column j of the checkpoint is column columns[j] of the pieces; {}: as they are
  // The file holds this times the number: a power of two, so that nothing is lost.
  double scale = 1;
  // Written only: what each row is multiplied by (one number: all). Files whose factors were multiplied in are read with
  // a config that has none.
  std::vector<double> factors = {};
};

// Collects the links of one model, for a GGUF file that is read or for a checkpoint that is to be written as one.
class GgufNames {
 public:
  using Has = std::function<bool(const std::string&)>;
  // Of a file that is read; it outlives this.
  explicit GgufNames(const GgufFile& file)
      : file_(&file), has_([&file](const std::string& name) { return file.contains(name); }) {}
  // Of a checkpoint that is to be written: which tensors there are.
  explicit GgufNames(Has has) : has_(std::move(has)) {}

  void link(GgufLink link) { links_.push_back(std::move(link)); }
  void link(const std::string& tensor, const std::string& gguf) {
    link({.tensor = tensor, .pieces = {{gguf}}});
  }
  void link(const std::string& tensor, Piece piece) {
    link({.tensor = tensor, .pieces = {std::move(piece)}});
  }
  // Both .weight, and .bias where there is one. NAME.weight is GGUF.weight.
  void linear(const std::string& tensor, const std::string& gguf);
  // `link` when the source has the tensor.
  bool optional(const std::string& tensor, const std::string& gguf);
  bool has(const std::string& tensor, const std::string& gguf) const { return has_(file_ ? gguf : tensor); }
  bool reading() const { return file_ != nullptr; }
  // Null when writing.
  const GgufFile* file() const { return file_; }
  // A tensor of the GGUF file that is no tensor of the checkpoint because it follows from the config: written, not read.
  void constant(const std::string& gguf, const at::Tensor& value) {
    passed_over_.push_back(gguf);
    constants_.emplace_back(gguf, value);
  }
  // Tensors of the GGUF file whose names begin so may be there and are not used: no note is made.
  void pass_over(const std::string& gguf) { passed_over_.push_back(gguf); }

  const std::vector<GgufLink>& links() const { return links_; }
  const std::vector<std::string>& passed_over() const { return passed_over_; }
  const std::vector<std::pair<std::string, at::Tensor>>& constants() const { return constants_; }

 private:
  const GgufFile* file_ = nullptr;
  Has has_;
  std::vector<GgufLink> links_;
  std::vector<std::string> passed_over_;
  std::vector<std::pair<std::string, at::Tensor>> constants_;
};

struct GgufArchitecture {
  std::string name;                      // general.architecture
  std::vector<std::string> model_types;  // of config.json that are written under this name; {}: read only
  // Fills the config, model_type and architectures included.
  void (*read_config)(const GgufFile& file, nlohmann::json& config);
  // The metadata of a config; those that every model has are there already.
  void (*write_metadata)(const ConfigReader& config, GgufMetadata& metadata);
  void (*name_tensors)(const ConfigReader& config, GgufNames& names);
};

void register_gguf_architecture(GgufArchitecture architecture);
// InputError, naming `where`, with the names that are known.
const GgufArchitecture& find_gguf_architecture(const std::string& name, const std::string& where);
// The one that writes this model_type; null when there is none.
const GgufArchitecture* gguf_architecture_for(const std::string& model_type);
std::vector<std::string> gguf_architecture_names();    // sorted
std::vector<std::string> gguf_writable_model_types();  // sorted

struct RegisterGgufArchitecture {
  RegisterGgufArchitecture(GgufArchitecture architecture) {
    register_gguf_architecture(std::move(architecture));
  }
};

}  // namespace weft
