// The pretrained architectures that weft opens, one small file each in architectures/: what a config means in weft's
// model description, and what the tensors are called. None of them computes anything.
#pragma once

#include <string>
#include <vector>

#include "io/pretrained/blueprint.h"
#include "io/pretrained/config_reader.h"
#include "io/pretrained/tensor_source.h"

namespace weft {

// What `describe` knows of the tensors of the file: some questions (is there a head of its own, which spelling has a
// name) only the file answers. Without a file (when a checkpoint is to be written) the newest spelling is meant.
class TensorNames {
 public:
  explicit TensorNames(const TensorSource* file) : file_(file) {}
  // Whether the file has the tensor; `without_file` when there is none.
  bool has(const std::string& name, bool without_file) const {
    return file_ ? file_->contains(name) : without_file;
  }
  // The first of these names that the file has; the first of all when it has none of them.
  std::string pick(const std::vector<std::string>& spellings) const;
  // The first size of a tensor; `without_file` when there is no file, or no such tensor in it.
  int64_t rows(const std::string& name, int64_t without_file) const;

 private:
  const TensorSource* file_;
};

struct Architecture {
  std::string model_type;  // as in config.json
  // Keys of the config that do not matter for what the model computes, beside those that never do (training, token
  // ids, library versions).
  std::vector<std::string> irrelevant;
  // Reads the whole config and fills `out`. Unsupported, through ConfigReader::unsupported, for values that are known
  // and not provided.
  void (*describe)(const ConfigReader& config, const TensorNames& tensors, Blueprint& out);
};

void register_architecture(Architecture architecture);
// InputError with the names that are known.
const Architecture& find_architecture(const std::string& model_type, const std::string& where);
std::vector<std::string> architecture_names();  // sorted

// Reads the config with its architecture, names in `model.name` what it is, and checks that every key was read.
Blueprint describe_pretrained(const ConfigReader& config, const TensorSource* file);

// const RegisterArchitecture register_llama{{"llama", {"pretraining_tp"}, describe_llama}};
struct RegisterArchitecture {
  RegisterArchitecture(Architecture architecture) { register_architecture(std::move(architecture)); }
};

}  // namespace weft
