// The tensors of a checkpoint by name, whatever file they come from.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace weft {

class TensorSource {
 public:
  virtual ~TensorSource() = default;
  virtual std::vector<std::string> names() const = 0;  // sorted
  virtual bool contains(const std::string& name) const = 0;
  // Sizes and type as `view` gives them. InputError names the nearest tensor when there is none of this name.
  virtual std::vector<int64_t> shape(const std::string& name) const = 0;
  virtual at::ScalarType dtype(const std::string& name) const = 0;
  // A CPU tensor, perhaps over a mapped file: it must not be written to.
  virtual at::Tensor view(const std::string& name) const = 0;
  virtual const std::string& path() const = 0;  // for messages
};

}  // namespace weft
