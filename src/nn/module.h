// Parameters, and the tree of modules that owns them. A module says how the optimizer must treat a parameter
// at the moment it makes it; there are no secret attributes.
#pragma once

#include <ATen/core/Generator.h>
#include <ATen/core/Tensor.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace weft {

// What a parameter is to an optimizer.
struct ParameterRules {
  enum class Role {
    matrix,     // weight of a hidden projection: Muon orthogonalises these; weight decay applies
    vector,     // biases, norms, gates, decays, convolutions: no weight decay
    embedding,  // token embedding or head
  };
  Role role = Role::matrix;
  double lr_scale = 1.0;     // multiplies the learning rate
  bool weight_decay = true;  // only read for Role::matrix and Role::embedding
  bool keep_float = false;   // stays fp32 when the model is converted to bf16 or fp16
};

// Fills a fresh parameter; draws from `random` only, so that equal seeds give equal models.
using Init = std::function<void(at::Tensor& value, at::Generator& random)>;
namespace init {
Init normal(double std);
Init uniform(double low, double high);
Init constant(double value);
}  // namespace init

struct Parameter {
  at::Tensor value;
  ParameterRules rules;
  Init init;
};

struct NamedParameter {
  std::string name;  // dotted path from the root: "layers.3.mixer.q.weight"
  Parameter* parameter;
};

// y = x W' + b. A handle: copies share the parameters. The weight is cast to the type of x, so fp32
// parameters serve as master weights of a bf16 run.
class Linear {
 public:
  Linear() = default;
  Linear(std::shared_ptr<Parameter> weight, std::shared_ptr<Parameter> bias) : weight_(weight), bias_(bias) {}
  at::Tensor operator()(const at::Tensor& x) const;            // [..., in] -> [..., out]
  const at::Tensor& weight() const { return weight_->value; }  // [out, in]

 private:
  std::shared_ptr<Parameter> weight_, bias_;
};

struct LinearOptions {
  bool bias = false;
  double scale = 1.0;  // multiplies the default initialisation, normal with std 1 / sqrt(3 in)
  ParameterRules rules = {};
};

// RMS or layer norm with its weights, or nothing at all.
class Norm {
 public:
  enum class Kind { none, rms, layer };
  Norm() = default;
  Norm(Kind kind, std::shared_ptr<Parameter> weight, std::shared_ptr<Parameter> bias, double eps)
      : kind_(kind), weight_(weight), bias_(bias), eps_(eps) {}
  at::Tensor operator()(const at::Tensor& x) const;  // [..., D]
  // x + branch, the residual stream, and its norm.
  std::pair<at::Tensor, at::Tensor> add(const at::Tensor& x, const at::Tensor& branch) const;
  Kind kind() const { return kind_; }
  double eps() const { return eps_; }
  // The scale [D]; undefined for Kind::none. For fused forms such as the gated norm.
  at::Tensor weight() const { return weight_ ? weight_->value : at::Tensor(); }

 private:
  Kind kind_ = Kind::none;
  std::shared_ptr<Parameter> weight_, bias_;
  double eps_ = 1e-5;
};
Norm::Kind norm_kind(const std::string& name);  // "rms", "layer", "none"

class Module {
 public:
  virtual ~Module() = default;
  Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  // Every parameter below this module, in the order they were made.
  std::vector<NamedParameter> parameters() const;
  int64_t parameter_count() const;
  // Weights of projections in use for each token (embeddings do not count): two flops each.
  int64_t matrix_weights() const;

  // Fills all parameters from a seed. A parameter's values depend on the seed and its name only.
  void initialize(uint64_t seed);
  // Converts every parameter; those with keep_float stay fp32 unless dtype is fp64.
  void to(at::ScalarType dtype);
  void to(at::Device device);
  void requires_grad(bool on);

 protected:
  std::shared_ptr<Parameter> parameter(const std::string& name, at::IntArrayRef sizes, Init init,
                                       ParameterRules rules = {});
  // Shorthand for a vector-like parameter: no weight decay, kept in fp32.
  std::shared_ptr<Parameter> vector_parameter(const std::string& name, at::IntArrayRef sizes, Init init);
  Linear linear(const std::string& name, int64_t in, int64_t out, const LinearOptions& options = {});
  Norm norm(const std::string& name, Norm::Kind kind, int64_t size, double eps);
  // `child` must live as long as this module.
  void add_child(const std::string& name, Module& child);

 private:
  void collect(const std::string& prefix, std::vector<NamedParameter>& out) const;
  std::vector<std::pair<std::string, std::shared_ptr<Parameter>>> own_;
  std::vector<std::pair<std::string, Module*>> children_;
};

}  // namespace weft
