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
  bool own = false;          // not shared with other modules where they share parameters (ParameterShare)
  double share = 1.0;        // of the numbers, that one token uses: less than 1 in a stack of experts
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

// While one lives, parameters that this thread makes have a shape and no memory: for models whose parameters are all
// replaced by those of a file.
class DeferredParameters {
 public:
  DeferredParameters();
  ~DeferredParameters();
  DeferredParameters(const DeferredParameters&) = delete;
  DeferredParameters& operator=(const DeferredParameters&) = delete;

 private:
  bool before_;
};

// y = x W' + b. A handle: copies share the parameters. The weight is cast to the type of x, so fp32
// parameters serve as master weights of a bf16 run.
class Linear {
 public:
  Linear() = default;
  Linear(std::shared_ptr<Parameter> weight, std::shared_ptr<Parameter> bias,
         std::shared_ptr<Parameter> down = {}, std::shared_ptr<Parameter> up = {})
      : weight_(weight), bias_(bias), down_(down), up_(up) {}
  at::Tensor operator()(const at::Tensor& x) const;            // [..., in] -> [..., out]
  const at::Tensor& weight() const { return weight_->value; }  // [out, in]

 private:
  std::shared_ptr<Parameter> weight_, bias_;
  std::shared_ptr<Parameter> down_, up_;  // of an adapter, [r, in] and [out, r]
};

struct LinearOptions {
  bool bias = false;
  // r > 0: y += W_up W_down x, of rank r (Hu et al. 2021, arXiv:2106.09685); W_up starts at 0. The module's own where
  // parameters are shared.
  int64_t adapter_rank = 0;
  double scale = 1.0;  // multiplies the default initialisation, normal with std 1 / sqrt(3 in)
  ParameterRules rules = {};
};

// RMS or layer norm with its weights, or nothing at all. rms_zero_centered scales by 1 + weight (Gemma, Qwen3-Next), or
// another offset + weight (PLaMo 2); rms_bias adds a bias (xLSTM 7B as an option).
class Norm {
 public:
  enum class Kind { none, rms, layer, rms_zero_centered, rms_bias };
  Norm() = default;
  Norm(Kind kind, std::shared_ptr<Parameter> weight, std::shared_ptr<Parameter> bias, double eps,
       double offset)
      : kind_(kind), weight_(weight), bias_(bias), eps_(eps), offset_(offset) {}
  at::Tensor operator()(const at::Tensor& x) const;  // [..., D]
  // x + branch, the residual stream, and its norm.
  std::pair<at::Tensor, at::Tensor> add(const at::Tensor& x, const at::Tensor& branch) const;
  Kind kind() const { return kind_; }
  double eps() const { return eps_; }
  // The scale [D]; undefined for Kind::none. For fused forms such as the gated norm.
  at::Tensor weight() const;

 private:
  Kind kind_ = Kind::none;
  std::shared_ptr<Parameter> weight_, bias_;
  double eps_ = 1e-5, offset_ = 1.0;
};
// "rms", "rms_zero_centered", "rms_bias", "layer", "none": norm_names()
Norm::Kind norm_kind(const std::string& name);
const std::vector<std::string>& norm_names();

// Parameters that several modules of one kind use. The first module that is made in `make` makes them, later ones are
// given the same, in the order in which they ask; those with rules.own each module has for itself.
class ParameterShare {
 public:
  // Calls `body`, which makes one module on this thread. InputError, naming `where`, when it asks for other parameters
  // than the first did.
  void make(const std::string& where, const std::function<void()>& body);

 private:
  friend class Module;
  // The parameter to use instead of `fresh`.
  std::shared_ptr<Parameter> next(const std::string& name, std::shared_ptr<Parameter> fresh);
  std::vector<std::pair<std::string, std::shared_ptr<Parameter>>> parameters_;
  bool filled_ = false;
  size_t next_ = 0;
  std::string first_, where_;
};

class Module {
 public:
  virtual ~Module() = default;
  Module() = default;
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;

  // Every parameter below this module, in the order they were made; one that several modules share once, under its
  // first name.
  std::vector<NamedParameter> parameters() const;
  int64_t parameter_count() const;
  // Weights of projections in use for each token (embeddings do not count): two flops each. Shared ones count as often
  // as they are used.
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
  // `offset` is what rms_zero_centered adds to its weights.
  Norm norm(const std::string& name, Norm::Kind kind, int64_t size, double eps, double offset = 1.0);
  // `child` must live as long as this module.
  void add_child(const std::string& name, Module& child);

 private:
  void collect(const std::string& prefix, std::vector<NamedParameter>& out) const;
  std::vector<std::pair<std::string, std::shared_ptr<Parameter>>> own_;
  std::vector<std::pair<std::string, Module*>> children_;
};

}  // namespace weft
